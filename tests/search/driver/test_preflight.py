"""Plans for an existing sweep's folder."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.core.sweep_folder import SweepFolder
from search.driver.preflight import adopt, offline, preflight
from search.options import configure
from trainables.core.storage import LocalStorage


def test_a_sweep_is_resumed_with_the_settings_asked_for_last(tmp_path: Path) -> None:
    """Its trials are extended, and the run that was to do so is interrupted."""
    place = ("--storage", str(tmp_path))
    quiet = ("--space", "taskres", "--shots", "2", "--tracking-uri", "none")
    plan = preflight(configure([*place, *quiet, "--name", "mine", "--trials", "3"]))
    sweep = LocalStorage(tmp_path / "mine")
    first = adopt(plan, SweepFolder(sweep))
    before = json.loads(sweep.read("sweep.json"))
    more = configure(["--resume", "mine", *place, "--trials", "8", "--time-budget", "1h"])
    again = adopt(dataclasses.replace(plan, config=more, id="another"), SweepFolder(sweep))
    assert again.id == first.id
    resumed = configure(["--resume", "mine", *place])
    assert (resumed.trials, resumed.time_budget) == (8, 3600)
    after = json.loads(sweep.read("sweep.json"))
    assert SweepConfig.from_dict(after["config"]) == more.public()
    assert after | {"config": None} == before | {"config": None}

    sweep.write("trials/000000/result.json", b"{}")
    sweep.delete("sweep.json")
    with pytest.raises(UsageError, match=r"has no sweep\.json. Restore it"):
        adopt(plan, SweepFolder(sweep))


def test_an_unreachable_hub_is_asked_again_by_the_next_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers of the first sweep inherit that it is unreachable; what the user has set stays."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("FEWSHOT_HUB_OFFLINE", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with offline():
        pass
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        with offline():
            assert "HF_HUB_OFFLINE" not in os.environ
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        with offline(always=True):
            assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert os.environ["HF_HUB_OFFLINE"] == "0"
