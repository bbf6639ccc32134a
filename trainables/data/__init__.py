"""Data sets, few-shot draws, prompts, and the seal on test data."""
