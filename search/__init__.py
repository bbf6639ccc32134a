"""What runs a sweep: `python -m search.run --help`."""
