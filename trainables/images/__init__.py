"""Decoding, resizing and augmenting images."""
