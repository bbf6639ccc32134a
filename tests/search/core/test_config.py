"""What makes a sweep what it is, and what may differ when it is resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.core.sweep_folder import FORMAT
from search.options import configure
from spaces.registry import SPACES


def test_unreadable_images_may_be_left_out_of_a_sweep_that_has_begun(tmp_path: Path) -> None:
    """The first may be a test image, which is met when all has been searched."""
    config = SweepConfig(name="mine", storage=str(tmp_path))
    skipping = replace(config, task=replace(config.task, skip_unreadable=True))
    assert skipping.identity() == config.identity()
    assert replace(skipping, name="").sweep_name == replace(config, name="").sweep_name
    record = {"format": FORMAT, "id": "i", "config": config.to_dict(), "fingerprints": {}}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sweep.json").write_text(json.dumps(record))
    resume = ["--resume", "mine", "--storage", str(tmp_path)]
    assert not configure(resume).task.skip_unreadable
    assert configure([*resume, "--skip-unreadable"]).task.skip_unreadable
    with pytest.raises(UsageError, match="generate_split"):
        configure([*resume, "--generate-split"])


@pytest.mark.parametrize("seconds", ["nan", "inf", "-5"])
def test_the_time_between_checkpoints_is_a_time(seconds: str) -> None:
    (problem,) = configure(["--checkpoint-seconds", seconds]).problems()
    assert f"--checkpoint-seconds must be a finite number of at least 0, got {seconds}." in problem
    assert configure(["--checkpoint-seconds", "0"]).problems() == []


def test_the_default_sweep_has_the_size_of_its_space() -> None:
    config, entry = SweepConfig(), SPACES[SweepConfig().space]
    assert (config.trials, config.task.seeds) == (entry.trials, entry.seeds)
