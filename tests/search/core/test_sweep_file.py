"""A sweep as a YAML file: read as options, written with all settings, the same sweep again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from search.core.sweep_file import read_options, sweep_text
from search.core.sweep_folder import SweepFolder, SweepRecord
from search.options import configure, read_request
from trainables.core.storage import LocalStorage

TEXT = """\
space: rmt+taskres
dataset: [digits, digits-rotated]
shots: [1, 4]
set: {rmt.leak: 0.5, learn_alpha: true}
range:
  rmt.epochs: 10:20:5
  rmt.lr: [1e-5, 1e-2, log]
choice: {rmt.batch_size: [8, 16], residual: [text, both]}
enqueue:
  - {rmt.lr: 1e-3, residual: both}
per-task: true
skip_unreadable: false
time-budget: 10m
seed: 0
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return str(path)


def test_a_path_of_a_data_set_may_have_commas(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    spec = f"folder:{tmp_path}/a,b"
    (tmp_path / "mine.yaml").write_text(f"dataset: ['{spec}', digits]\n")
    assert configure([str(tmp_path / "mine.yaml")]).task.datasets == (spec, "digits")


def test_a_file_is_a_command_line(file: str) -> None:
    assert read_options(file) == [
        "--space=rmt+taskres",
        "--dataset=digits,digits-rotated",
        "--shots=1,4",
        "--set=rmt.leak=0.5",
        "--set=learn_alpha=true",
        "--range=rmt.epochs=10:20:5",
        "--range=rmt.lr=1e-5:1e-2:log",
        "--choice=rmt.batch_size=8,16",
        "--choice=residual=text,both",
        '--enqueue=[{"rmt.lr": 0.001, "residual": "both"}]',
        "--per-task",
        "--time-budget=10m",
        "--seed=0",
    ]
    config = configure([file])
    assert config == configure(read_options(file))
    assert config.problems() == []


def test_options_after_the_file_replace_what_it_says(file: str) -> None:
    config = configure([file, "--shots", "2", "--set", "rmt.lr=1e-3", "--range", "alpha=0.1:1"])
    assert config.task.shots == (2,)
    assert config.task.datasets == ("digits", "digits-rotated")
    assert config.settings.set == {"rmt.leak": 0.5, "learn_alpha": True, "rmt.lr": 0.001}
    assert config.settings.range == {"rmt.epochs": "10:20:5", "alpha": "0.1:1"}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--space", "taskres", "--validation", "held-out", "--seed", "3", "--eval-seeds", "1"],
        ["--space", "clip-lora", "--choice", "matrices=q,v|q,k,v", "--set", "dropout=0"],
        ["--grid", "leak=0,1", "--grid", "rule=sum,none", "--preset", "reference"],
        ["--space", "taskres", "--enqueue", '[{"alpha": 0.7}]', "--time-budget", "90"],
        ["--dataset", "folder:a/b, c", "--per-task", "--second-objective", "mask/sparsity:max"],
    ],
)
def test_what_a_sweep_has_written_is_the_same_sweep(options: list[str], tmp_path: Path) -> None:
    config = configure(options)
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep_text(config))
    assert configure([str(path)]) == config


def test_every_sweep_has_its_file(tmp_path: Path) -> None:
    config = replace(configure(["--set", "leak=0.5"]), name="mine", storage=str(tmp_path))
    folder = SweepFolder(LocalStorage(tmp_path / "mine"))
    folder.write_record(SweepRecord("id", config, {}))
    again = configure([str(tmp_path / "mine" / "sweep.yaml")])
    assert again == replace(config, storage="sweeps")
    assert "tracking" not in (tmp_path / "mine" / "sweep.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a", "has no options"),
        ("a: [", "expected the node content"),
        ("shots: {a: {b: 1}}", "has no plain value for 'shots'"),
        ("shotz: 4", "Unrecognized arguments: --shotz=4. Did you mean --shots?"),
        ("shots: many", "--shots must be whole numbers"),
        ("enqueue: [{lr: 1}, 5]", "has no plain value for 'enqueue'"),
        ("help: true", "has 'help', which only the command line may have"),
        ("'a b': 1", "has 'a b', which is not an option"),
        ('"\\e[31m": 1', r"has '\x1b[31m', which is not an option"),
        ("file: a.yaml", "Unrecognized arguments: --file=a.yaml"),
        ("a: &x [1, 2]\nshots: *x", "has an alias"),
        ("shots: 4\nspace: rmt\nshots: 8", "has 'shots' twice"),
        ("set: {leak: 0.3, leak: 1}", "has 'leak' twice"),
        ("shots: " + "[" * 9000, "is nested too deeply"),
    ],
)
def test_mistakes_in_a_file(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    found = read_request([str(path), "--trials", "x"]).problems
    assert any(told in problem for problem in found), found
    assert any("--trials must be a whole number" in problem for problem in found)


def test_a_missing_file(tmp_path: Path) -> None:
    (found,) = read_request([str(tmp_path / "none.yaml")]).problems
    assert "cannot be read (it is missing)" in found


@pytest.mark.parametrize("option", ["", "--class-names=", "--plugin=", "--enqueue="])
def test_a_path_that_is_no_regular_file(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path, kind in ((f"{tmp_path}/pipe.json", "a named pipe"), ("~nobody9/x.json", "missing")):
        (found,) = read_request([f"{option}{path}"]).problems
        assert kind in found
