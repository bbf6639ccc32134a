"""Settings of every test process."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where tests in a browser keep their pictures."""
    parser.addoption("--screenshots", default="", metavar="FOLDER", help="keep pictures of pages")


def pytest_configure(config: pytest.Config) -> None:
    """One thread: results do not depend on the machine, and busy cores are not spun upon.
    A cache of the tests' own, which processes that they start inherit."""
    torch.set_num_threads(1)
    if not hasattr(config, "workerinput"):  # workers of xdist inherit it too
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="few-shot-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """The cache goes."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
