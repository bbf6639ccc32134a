"""Settings of every test process."""

from __future__ import annotations

import torch


def pytest_configure() -> None:
    """One thread: results do not depend on the machine, and busy cores are not spun upon."""
    torch.set_num_threads(1)
