"""What the end of a sweep found on the sealed test split, and what may be said of it."""
