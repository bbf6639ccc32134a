"""The process that runs a sweep, from the checks before it to its summary."""
