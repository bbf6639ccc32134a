"""Benchmarks behind the figures in RESULTS.md: ratios of two programs measured in one run."""
