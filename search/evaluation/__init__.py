"""The evaluation of a sweep's winner on the sealed test splits, and its record."""
