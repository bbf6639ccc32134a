"""Exports of trained models: `python -m search.export`."""
