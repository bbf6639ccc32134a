"""This machine's cache: what can be made again, for all processes of a user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`few-shot-clip-search` in $XDG_CACHE_HOME, else in ~/.cache; it need not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "few-shot-clip-search"
