"""Marks of the tests that need hosts."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for mark, what in (
        ("hosts", "a cluster on test hosts, minutes; run with `pytest -m hosts`"),
        ("hosts_long", "the same with more misfortune, ten minutes; `pytest -m hosts_long`"),
    ):
        config.addinivalue_line("markers", f"{mark}: {what}")
