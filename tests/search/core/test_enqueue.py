"""Configurations that run first: files, sweeps, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.core.enqueue import read_configurations
from search.core.problems import UsageError
from search.options import configure
from tests.search.made import made
from trainables.methods.base import TaskFacts
from trainables.presets import preset_trial
from trainables.trial import TaskSpec

FOUND = ({"alpha": 0.7, "learn_alpha": True}, {"alpha": 1, "residual": "both"})


def test_a_file_of_configurations(tmp_path: Path) -> None:
    listed = tmp_path / "first.json"
    listed.write_text(json.dumps(FOUND))
    table = tmp_path / "first.csv"
    table.write_text("alpha,learn_alpha,residual\n0.7,true,\n1,,both\n")
    for where in (str(listed), str(table), json.dumps(FOUND)):
        assert read_configurations(where, "") == FOUND
    config = configure(["--space", "taskres", "--enqueue", str(table)])
    assert config.problems() == []
    assert [trial["alpha"] for trial in config.general_space.queue] == [0.5, 0.7, 1.0]


def test_the_best_trials_of_a_sweep(tmp_path: Path) -> None:
    task = TaskSpec(("digits",), "tiny", (1,), (1,))
    made(tmp_path, "other", preset_trial("taskres", "paper", TaskFacts("digits", 1, 10)), task)
    assert read_configurations("other:3", str(tmp_path)) == ({},)
    with pytest.raises(UsageError, match="There is no sweep 'another'"):
        read_configurations("another", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", "[]", "is no list of objects"),
        ("a.json", '[{"alpha": [1]}]', "is no list of objects"),
        ("a.csv", "alpha\n", "an empty row or no rows"),
        ("a.csv", "alpha\n1,2\n", "without a name"),
        ("a.csv", "alpha,lr\n,\n", "an empty row"),
        ("b.csv", None, "cannot be read"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match="--enqueue must be a file of configurations") as caught:
        read_configurations(str(tmp_path / name), "")
    assert told in caught.value.problems[0]
