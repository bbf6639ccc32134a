"""The benchmarks run, compare equal work, and confirm the direction of the claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks.features import extraction, second_use, training
from benchmarks.many_trials import in_process, per_minute
from benchmarks.mask_step import PublishedStep, measure, open_shape, peak_memory, table
from benchmarks.stacked_steps import measure as measure_stacked


def test_mask_step_has_the_published_gradients_in_less_time() -> None:
    figures = measure("tiny", batch=16, repeats=5)
    assert figures.difference < 1e-5
    assert figures.dropped_alike > 0.9999
    assert figures.ours.ratio > 1
    assert figures.cached.ratio > 1
    assert "published step" in table(figures)


def test_mask_step_counts_what_it_claims() -> None:
    figures = measure("tiny", batch=8, repeats=1)
    counts = [row.flop / figures.forward for row in (figures.published, figures.ours)]
    # The published step also backpropagates through its teacher: two more forward passes.
    assert counts == pytest.approx([6.65, 4.69], abs=0.05)
    teacher = figures.ours.flop - figures.cached.flop
    assert teacher == pytest.approx(figures.forward, rel=1e-2)


@pytest.mark.slow
def test_mask_step_holds_little() -> None:
    """Uses the embedded model's size, where activations need nearly all of the memory."""
    published, ours = (peak_memory(step, "tiny", 512) for step in ("published", "cached"))
    assert ours < 0.6 * published


def test_mask_step_notices_other_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PublishedStep.gradients

    def wrong(
        self: PublishedStep, images: Tensor, labels: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        return right(self, images, labels.roll(1))

    monkeypatch.setattr(PublishedStep, "gradients", wrong)
    assert measure("tiny", batch=8, repeats=1).difference > 1e-2


def test_stacked_steps_learn_the_same() -> None:
    """Uses few epochs and does not check how fast this machine is."""
    found = measure_stacked("taskres", classes=4, draws=2, epochs=2, turns=1)
    assert found.ratio == pytest.approx(found.single / found.stacked)


def test_features_are_extracted_found_again_and_trained_on(tmp_path: Path) -> None:
    """Uses small sizes and does not check how fast this machine is."""
    for part in ("extraction", "second-use"):
        (tmp_path / part).mkdir()
    found = extraction(open_shape("tiny"), 20, 2, tmp_path / "extraction")
    assert found.bare > 0
    assert found.ratio > 0
    use = second_use(3, 2, 2, tmp_path / "second-use")
    assert use.rows == 6
    assert use.first_batch > 0
    wall, processor = training(5, 60, 2, 2)
    assert min(wall, processor) > 0


@pytest.mark.slow
def test_many_trials_counts_a_real_sweep(tmp_path: Path) -> None:
    first = in_process(str(tmp_path), "many", "40", "2", "none")
    assert first["states"] == {"COMPLETE": 40, "PRUNED": 0, "FAIL": 0}
    assert [mark[0] for mark in first["marks"]] == list(range(1, 41))
    assert per_minute(first["marks"]) > 400
    assert max(mark[2] for mark in first["marks"]) < 600  # MB
    again = in_process(str(tmp_path), "many", "41", "2", "none")
    assert [mark[0] for mark in again["marks"]] == [41]


SHORT = {
    "dashboard": ("--trials 20 --pairs 1 --seconds 5", "with an open page"),
    "export_inference": ("--batch 4 --repeats 2", "images"),
    "features": ("--part extraction --images 8 --turns 1", "extraction: bare"),
    "mask_results": ("digits 1 1 --trials 2", "majority"),
    "many_trials": ("--trials 6", "trials"),
    "mask_step": ("--batch 4 --repeats 2", "published step"),
    "methods": ("--print", "taskres"),
    "overhead": ("--trials 12", "both sides found the same value in every trial"),
    "own_script": ("--trials 4 --shots 4 --turns 1", "both trained the same models"),
    "prediction": ("--images 40 --turns 2", "ratio"),
    "precision": ("--shots 1", "1-shot: "),
    "reproduction": ("--only eurosat", "15 cells"),
    "scale": ("--workers 2 --trials 12 --scale 60", "resumed at 12 trials"),
    "seen_trials": ("--trials 610 --seeds 1", "choices and conditions"),
    "stacked_steps": ("--draws 2 --epochs 2 --turns 1", "times"),
    "tracking_outage": ("--trials 5 --idle 1", "MLflow was not imported"),
}
"""Options for a short run, and a part of the expected output."""


def test_every_benchmark_has_a_short_form() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    packages = {path.parent.name for path in folder.glob("*/__main__.py")} - {"selection"}
    assert set(SHORT) == packages | {path.stem for path in folder.glob("[!_]*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_every_benchmark_runs(name: str) -> None:
    options, expected = SHORT[name]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options.split()],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout
    assert "Traceback" not in done.stderr
