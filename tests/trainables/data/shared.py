"""Real data that tests use if it is available."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def shared_data(*parts: str) -> Path:
    """A path below the folder of shared data; skips the test if it is missing."""
    folder = Path(os.environ.get("SHARED_DATA") or ROOT.parent / "shared" / "data")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no shared data at {path} (set SHARED_DATA to its folder)")
    return path
