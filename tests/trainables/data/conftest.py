"""Tests of data sets read test splits, as an evaluation process does."""

from __future__ import annotations

import pytest

from trainables.data.sealed import EVALUATION_PROCESS


@pytest.fixture(autouse=True)
def _evaluation_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EVALUATION_PROCESS.items():
        monkeypatch.setenv(name, value)
