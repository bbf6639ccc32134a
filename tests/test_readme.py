"""Facts stated in the README and the documentation are true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from search.core.pruners import PRUNERS
from search.core.samplers import SAMPLERS
from search.exporting.formats import FORMATS
from spaces.registry import SPACES
from trainables.backbones.registry import BACKBONES
from trainables.core.protocols import Protocol
from trainables.data.registry import DATASETS
from trainables.methods.base import TaskFacts
from trainables.methods.masking.rmt import CLEAN_FLIP_BUDGET
from trainables.methods.registry import METHODS
from trainables.view import AUGMENTED_VIEWS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^bash \.ci/venv (.*)$", README, re.MULTILINE)


def page(name: str) -> str:
    """The text of a documentation page."""
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def row(option: str) -> str:
    choices = page("choices")
    (found,) = re.findall(rf"^\| `{option}` \| (.*) \|$", choices, re.MULTILINE)
    return str(choices.split("## Spaces")[1] if option == "--space" else found)


def test_the_first_screen_shows_the_two_commands() -> None:
    assert COMMANDS[:2] == ["python -m search.run --space rmt", "python -m pytest"]
    assert README.index(COMMANDS[1]) < 1200
    assert "README.md | head -2" in (ROOT / ".ci/run").read_text()  # .ci/run runs just these


def test_the_number_of_augmented_views() -> None:
    assert AUGMENTED_VIEWS == 8
    assert "eight augmented views" in page("data")
    assert "eight augmented views" in page("methods")


def test_every_export_format_is_listed() -> None:
    table = page("results").split("| `--format` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE) == list(FORMATS)


def test_every_protocol_is_explained() -> None:
    table = page("data").split("| protocol |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(get_args(Protocol))


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
    recipe = METHODS[method].preset("paper", TaskFacts(dataset, shots, 160))
    known = vars(recipe.config) | vars(recipe.optim)
    assert {name: known[name] for name in facts} == facts


def test_other_presets() -> None:
    facts = TaskFacts("digits", 16, 160)
    taskres = METHODS["taskres"].preset("reference", facts)
    masks = METHODS["rmt"].preset("reference", facts)
    assert taskres.optim.weight_decay == 5e-4
    assert vars(masks.config)["patch_embedding"]
    assert vars(masks.config)["norm_weight"] == 1e-4
    assert CLEAN_FLIP_BUDGET == 6


def test_the_output_is_a_real_one() -> None:
    """`.ci/check_main_job.py` compares its figures with those of a fresh run."""
    (block,) = re.findall(r"```text\n(Sweep .*?)```", README, re.DOTALL)
    for line in (
        r"Sweep rmt-digits-tiny-16shot-\w+: rmt on digits, 16 shots, backbone tiny\.",
        r"Trials: \d+ complete\.",
        r"A trial took 0\.\d\d s outside training \(median, warm workers\)\.",
        r"Test accuracy, 896 images, fresh draws 2, 3, 4",
        r"zero-shot +\d\d\.\d % +-",
        r"the paper's setting +\d\d\.\d % +\d\.\d +\+\d+\.\d",
        r"the winner +\d\d\.\d % +\d\.\d +\+\d+\.\d",
        r"The winner is trial \d+, chosen on validation data \(\d+\.\d %\): masked ",
        r"Folder: sweeps/rmt-digits-tiny-16shot-\w+",
        r"Report: sweeps/rmt-digits-tiny-16shot-\w+/report/report\.html",
        r"MLflow: \.venv/bin/mlflow ui --backend-store-uri sqlite:///\S+/sweeps/mlflow\.db",
    ):
        assert re.search(f"^{line}", block, re.MULTILINE), line


def test_the_map_is_complete() -> None:
    (block,) = re.findall(r"```text\n(search/ .*?)```", README, re.DOTALL)
    for name in ("search/", "spaces/", "trainables/", "benchmarks/", "cluster.yaml"):
        assert name in block
        assert (ROOT / name).exists()
