"""Whole sweeps of every protocol, run as by a user."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from search.run import main
from tests.search.conftest import Sweep

QUICK = (
    *("--space", "taskres", "--trials", "2", "--eval-seeds", "2", "--tracking-uri", "none"),
    *("--max-concurrent", "1"),
)


def scores(sweep: Sweep) -> dict[tuple[str, str, int, str, str], tuple[float, ...]]:
    return {
        (s["label"], s["dataset"], s["shots"], s["target"], s["part"]): tuple(s["values"])
        for s in sweep.evaluation()["scores"]
    }


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, "test")


def run(sweep: Sweep, *options: str) -> str:
    done = sweep.run(*QUICK, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def reads(sweep: Sweep) -> list[dict[str, Any]]:
    lines = (sweep.folder / "test_reads.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_set_of_data_sets_and_shots(sweep: Sweep) -> None:
    """One configuration for all episodes; its objective is their mean; one evaluation reads each
    split, once per episode."""
    said = run(sweep, "--dataset", "digits,digits-rotated", "--shots", "1,4", "--seeds", "1")
    assert "digits, digits-rotated, 1, 4 shots" in said
    assert {key[1:] for key in scores(sweep)} == {
        (name, shots, name, "test") for name in ("digits", "digits-rotated") for shots in (1, 4)
    }
    assert Counter(read["dataset"] for read in reads(sweep)) == {"digits": 4, "digits-rotated": 4}
    assert len({read["evaluation"] for read in reads(sweep)}) == 1
    assert "have read the test split" not in said
    artifacts = sorted(p.name for p in (sweep.folder / "trials/000000").glob("artifact*"))
    assert artifacts[0] == "artifact-digits-1shot-seed1.safetensors"
    assert len(artifacts) == 4
    assert len(list((sweep.folder / "winner").glob("artifact*"))) == 8


def test_base_to_new(sweep: Sweep) -> None:
    """Both halves from one read per draw; training on base classes does not change the new ones."""
    said = run(sweep, "--protocol", "base-to-new", "--shots", "4", "--seeds", "1")
    assert "harmonic mean of the averages" in said
    assert "average of the harmonic means" in said
    found = scores(sweep)
    assert {key[4] for key in found} == {"base", "new"}
    assert len(reads(sweep)) == 2
    new = {label: found[(label, "digits", 4, "digits", "new")] for label in ("zero-shot", "winner")}
    assert new["winner"] == new["zero-shot"]
    base = {label: found[(label, "digits", 4, "digits", "base")] for label in ("paper", "winner")}
    assert min(base["paper"]) > 0.7  # five classes: chance is 0.2


def test_domain_generalization(sweep: Sweep) -> None:
    """The shift is judged by the classifier of the source, and nothing is trained on it."""
    said = run(sweep, "--protocol", "domain-generalization", "--shots", "4", "--seeds", "1")
    assert "Mean test accuracy on the shifts" in said
    found = scores(sweep)
    assert {key[3:] for key in found} == {("digits", "test"), ("digits-rotated", "shift")}
    assert {key[1] for key in found} == {"digits"}
    assert Counter(read["dataset"] for read in reads(sweep)) == {"digits": 2, "digits-rotated": 2}


@pytest.mark.slow
def test_cross_dataset(sweep: Sweep) -> None:
    options = ("--dataset", "digits,digits-rotated", "--protocol", "cross-dataset")
    run(sweep, *options, "--shots", "4", "--seeds", "1")
    found = scores(sweep)
    rotated = {key[0]: values for key, values in found.items() if key[4] == "target"}
    assert rotated["winner"] == rotated["zero-shot"]  # no residual for classes it has not seen


@pytest.mark.slow
def test_one_search_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--dataset", "digits,digits-rotated", "--shots", "4", "--seeds", "1", "--per-task")
    assert main([*QUICK, *options, "--storage", str(tmp_path), "--name", "each"]) == 0
    for name in ("each-digits-4shot", "each-digits-rotated-4shot"):
        assert Sweep(tmp_path, name).evaluation()["winner"] in (0, 1)
    assert "One search per task" in capsys.readouterr().out


@pytest.mark.slow
def test_cells_are_compared_in_pairs(sweep: Sweep) -> None:
    """With the Wilcoxon pruner, a trial trains one episode after another and reports each."""
    options = ("--pruner", "wilcoxon", "--dataset", "digits,digits-rotated", "--shots", "1")
    run(sweep, *options, "--seeds", "1,2")
    assert len(sweep.results()[0]["values"]) == 4


@pytest.mark.slow
def test_masks_transfer_to_classes_that_were_not_trained(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "masks")
    options = ("--space", "rmt", "--trials", "1", "--eval-seeds", "1")
    done = sweep.run(
        *options, *("--tracking-uri", "none", "--protocol", "base-to-new", "--shots", "4")
    )
    assert done.returncode == 0, done.stderr
    assert {key[4] for key in scores(sweep)} == {"base", "new"}
