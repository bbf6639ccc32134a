"""What a sweep has learned, as files that others can load: `python -m search.export`."""
