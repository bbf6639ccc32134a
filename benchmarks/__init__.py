"""Where the figures in RESULTS.md come from: ratios of two programs measured in one run."""
