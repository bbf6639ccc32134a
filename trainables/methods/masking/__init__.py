"""Mask tuning (R-AMT and its variants)."""
