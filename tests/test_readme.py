"""What the README says is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from search.doctor import build_parser as doctor_parser
from search.export import build_parser as export_parser
from search.exports.formats import FORMATS
from search.pruners import PRUNERS
from search.report import build_parser as report_parser
from search.run import build_parser
from search.samplers import SAMPLERS
from search.sync import build_parser as sync_parser
from spaces.registry import SPACES
from trainables.backbones.registry import BACKBONES
from trainables.data.registry import DATASETS
from trainables.methods.mask_recipe import CLEAN_FLIP_BUDGET
from trainables.methods.registry import METHODS
from trainables.trial import Protocol
from trainables.view import AUGMENTED_VIEWS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^bash \.ci/venv (.*)$", README, re.MULTILINE)


def row(option: str) -> str:
    (found,) = re.findall(rf"^\| `{option}` \| (.*) \|$", README, re.MULTILINE)
    return str(found)


def test_the_first_screen_shows_the_two_commands() -> None:
    assert COMMANDS[:2] == ["python -m search.run --space rmt", "python -m pytest"]
    assert README.index(COMMANDS[1]) < 1200
    assert "README.md | head -2" in (ROOT / ".ci/run").read_text()  # .ci/run runs just these


@pytest.mark.parametrize("command", [c for c in COMMANDS if "search.run" in c and "help" not in c])
def test_commands_are_understood(command: str) -> None:
    assert vars(build_parser().parse_args(shlex.split(command)[3:]))


def test_a_doctor_command_is_understood() -> None:
    (command,) = (c for c in COMMANDS if "search.doctor" in c)
    assert vars(doctor_parser().parse_args(shlex.split(command)[3:]))["datasets"] == ["dtd"]


def test_the_number_of_augmented_views() -> None:
    assert AUGMENTED_VIEWS == 8
    assert README.count("eight augmented views") == 2


def test_a_sync_command_is_understood() -> None:
    (command,) = (c for c in COMMANDS if "search.sync" in c)
    assert vars(sync_parser().parse_args(shlex.split(command)[3:]))["rebuild"]


def test_a_report_command_is_understood() -> None:
    (command,) = (c for c in COMMANDS if "search.report" in c)
    assert vars(report_parser().parse_args(shlex.split(command)[3:]))


def test_export_commands_are_understood() -> None:
    commands = [c for c in COMMANDS if "search.export" in c]
    given = [export_parser().parse_args(shlex.split(command)[3:]) for command in commands]
    assert [(options.trial, options.format) for options in given] == [
        ("best", "merged"),
        ("7", "onnx"),
    ]


def test_every_export_format_is_listed() -> None:
    table = README.split("| `--format` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE) == list(FORMATS)


def test_the_cluster_command_is_understood() -> None:
    (command,) = re.findall(r"^ray exec cluster\.yaml 'python -m search\.run (.*)'$", README, re.M)
    given = vars(build_parser().parse_args(shlex.split(command)))
    assert given["storage"] == "$STORAGE/sweeps"  # single quotes: the head's shell fills it in


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--space", SPACES),
        ("--dataset", DATASETS),
        ("--backbone", BACKBONES),
        ("--sampler", SAMPLERS),
        ("--pruner", PRUNERS),
        ("--protocol", dict.fromkeys(get_args(Protocol))),
    ],
)
def test_every_choice_is_listed(option: str, names: dict[str, object]) -> None:
    said = set(re.findall(r"`([a-z0-9_+-]+)`", row(option)))
    assert set(names) <= said


@pytest.mark.parametrize(
    ("method", "shots", "dataset", "facts"),
    [
        ("taskres", 4, "digits", {"alpha": 0.5, "lr": 2e-3, "epochs": 100, "weight_decay": 0.0}),
        ("taskres", 16, "imagenet", {"lr": 2e-4, "epochs": 200, "warmup_epochs": 1}),
        ("taskres", 16, "oxford_flowers", {"alpha": 1.0}),
        ("rmt", 16, "digits", {"masked": "mhsa", "lr": 8e-5, "epochs": 30, "leak": 0.3}),
        ("rmt", 4, "digits", {"leak": 1.0, "patch_embedding": False, "norm_weight": 0.0}),
    ],
)
def test_paper_presets(method: str, shots: int, dataset: str, facts: dict[str, object]) -> None:
    recipe = METHODS[method].preset("paper", dataset=dataset, shots=shots, images=160)
    known = vars(recipe.config) | vars(recipe.optim)
    assert {name: known[name] for name in facts} == facts


def test_other_presets() -> None:
    options = {"dataset": "digits", "shots": 16, "images": 160}
    taskres = METHODS["taskres"].preset("reference", **options)  # type: ignore[arg-type]
    masks = METHODS["rmt"].preset("reference", **options)  # type: ignore[arg-type]
    assert taskres.optim.weight_decay == 5e-4
    assert vars(masks.config)["patch_embedding"]
    assert vars(masks.config)["norm_weight"] == 1e-4
    assert CLEAN_FLIP_BUDGET == 6


def test_the_output_is_a_real_one() -> None:
    """`.ci/check_main_job.py` compares its figures with those of a fresh run."""
    (block,) = re.findall(r"```text\n(Sweep .*?)```", README, re.DOTALL)
    for line in (
        r"Sweep rmt-digits-tiny-16shot-\w+: rmt on digits, 16 shots, backbone tiny\.",
        r"Trials: \d+ complete, \d+ pruned\.",
        r"A trial cost 0\.\d\d s outside training \(median, warm workers\)\.",
        r"Test accuracy, 896 images, fresh draws 2, 3, 4",
        r"zero-shot +\d\d\.\d % +0\.0",
        r"the paper's setting +\d\d\.\d % +\d\.\d +\+\d+\.\d",
        r"the winner +\d\d\.\d % +\d\.\d +\+\d+\.\d",
        r"The winner is trial \d+, chosen on validation data \(\d+\.\d %\): masked ",
        r"Folder: sweeps/rmt-digits-tiny-16shot-\w+",
        r"MLflow: \.venv/bin/mlflow ui --backend-store-uri sqlite:///\S+/sweeps/mlflow\.db",
    ):
        assert re.search(f"^{line}", block, re.MULTILINE), line


def test_the_map_is_complete() -> None:
    (block,) = re.findall(r"```text\n(search/ .*?)```", README, re.DOTALL)
    for name in ("search/", "spaces/", "trainables/", "benchmarks/", "cluster.yaml"):
        assert name in block
        assert (ROOT / name).exists()
