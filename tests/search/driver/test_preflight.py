"""Plans for an existing sweep's folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from search.core.config import SweepConfig
from search.core.sweep_folder import SweepFolder
from search.driver.preflight import adopt, preflight
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
