"""What may vary in a search; `SPACES` in `registry.py` lists the spaces."""
