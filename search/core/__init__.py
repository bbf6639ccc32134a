"""What a sweep is: configuration, choices, errors; everything above builds on it."""
