"""From the command line to a configuration, where sets of tasks are concerned."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.options import configure, names, per_task
from trainables.data.registry import BASE_TASKS


def test_sets_of_tasks() -> None:
    task = configure(
        ["--dataset", "digits,digits-rotated", "--shots", "1,4", "--seeds", "1,2"]
    ).task
    assert task.datasets == ("digits", "digits-rotated")
    assert len(task.episodes) == 8
    assert [cell.seed for cell in task.episodes] == [1] * 4 + [2] * 4
    assert configure(["--dataset", "all11"]).task.datasets == BASE_TASKS


def test_a_path_may_have_commas(tmp_path: Path) -> None:
    """Where it is there: what is not is told as the names that it reads as."""
    for name in ("sp", "sp,x", "a,b,c"):
        (tmp_path / name).mkdir()
    one, two = f"folder:{tmp_path}/sp,x", f"folder:{tmp_path}/a,b,c"
    assert names(f"{one},dtd,{two}") == [one, "dtd", two]
    assert names(f"folder:{tmp_path}/sp,digits") == [f"folder:{tmp_path}/sp", "digits"]
    assert names("folder:nowhere,x,,all11") == ["folder:nowhere", "x", *BASE_TASKS]


def test_one_search_a_task() -> None:
    options = ["--dataset", "digits,digits-rotated", "--shots", "1,4", "--per-task"]
    found = per_task(configure(options))
    assert [(c.task.datasets, c.task.shots) for c in found] == [
        ((name,), (shots,)) for name in ("digits", "digits-rotated") for shots in (1, 4)
    ]
    assert not any(config.per_task for config in found)
    assert len({config.sweep_name for config in found}) == 4
    named = per_task(configure([*options, "--name", "mine"]))
    assert [config.name for config in named][:2] == ["mine-digits-1shot", "mine-digits-4shot"]
    assert per_task(SweepConfig()) == [SweepConfig()]
    alike = ["--dataset", "folder:a/birds,folder:b/birds,folder:c/birds2", "--per-task"]
    named = per_task(configure([*alike, "--shots", "1", "--name", "mine"]))
    stems = ["mine-birds1-1shot", "mine-birds2_-1shot", "mine-birds2-1shot"]
    assert [config.name for config in named] == stems
    crossed = ["--dataset", "digits,digits-rotated", "--protocol", "cross-dataset", "--per-task"]
    (only,) = per_task(configure(crossed))
    assert only.task.datasets == ("digits", "digits-rotated")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSHOT_DATA", "trees")
    config = configure(["--dataset", "folder:mine", "--shots-file", "d/{dataset}-{seed}.json"])
    assert config.task.datasets == (f"folder:{tmp_path}/mine",)
    assert config.task.draws == f"file:{tmp_path}/d/{{dataset}}-{{seed}}.json"
    assert config.data == str(tmp_path / "trees")
    assert configure(["--data", "other"]).data == str(tmp_path / "other")


def test_images_are_drawn_by_one_rule() -> None:
    with pytest.raises(UsageError, match="not both"):
        configure(["--draws", "coop", "--shots-file", "x.json"])
