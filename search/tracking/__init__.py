"""MLflow as a mirror for people, fed from an outbox on disk."""
