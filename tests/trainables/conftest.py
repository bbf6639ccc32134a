"""One encoded task for all tests, and the same small facts from fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask


@pytest.fixture(scope="session")
def encoded_task() -> EncodedTask:
    """The embedded backbone on the CPU. Tests must not change it."""
    return EncodedTask("tiny", "cpu", DataSource())


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`fresh_facts.facts()` from a process with another hash seed, another past and no cache."""
    cache = str(tmp_path_factory.mktemp("cache"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainables.fresh_facts"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONHASHSEED": "4711", "XDG_CACHE_HOME": cache},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
