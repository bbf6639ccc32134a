"""Few-shot tuning methods; `METHODS` in `registry.py` lists them."""
