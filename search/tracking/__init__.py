"""MLflow as a copy of a sweep's folder, for people."""
