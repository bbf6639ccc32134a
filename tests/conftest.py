"""Settings for all tests."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the folder for the browser tests' pictures."""
    parser.addoption("--screenshots", default="", metavar="FOLDER", help="keep pictures of pages")


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread, so that results do not depend on the machine and busy cores do not spin, and
    a separate cache, which child processes inherit."""
    torch.set_num_threads(1)
    if not hasattr(config, "workerinput"):  # xdist workers inherit it too
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="few-shot-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
