"""Settings for all tests."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile

import pytest
import torch

_MOST_PROCESSES = 8
"""Each of them starts a Ray and takes about 2 GB."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the folder for the browser tests' pictures."""
    parser.addoption("--screenshots", default="", metavar="FOLDER", help="keep pictures of pages")


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread, so that results do not depend on the machine and busy cores do not spin, and
    a separate cache, which child processes inherit."""
    torch.set_num_threads(1)
    gc.set_threshold(50_000)  # half of the time in which tests are collected
    atexit.register(gc.freeze)
    if not hasattr(config, "workerinput"):  # xdist workers inherit it too
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="few-shot-cache-")


def pytest_collection_finish() -> None:
    """Thousands of tests stay: later garbage collections need not look at them."""
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use all cores, but this process alone for a single file or test, for `-s`, and for hosts and
    GPUs, of which there is only one set."""
    option = config.option
    single = len(config.args) == 1 and ".py" in config.args[0]
    if single or option.capture == "no" or option.markexpr in ("gpu", "hosts", "hosts_long"):
        return 0
    return min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End Ray and remove the cache."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
