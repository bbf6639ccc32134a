"""From predictions to scores and comparisons."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from search.evaluation.predictions import ModelPredictions, PredictionTable
from search.evaluation.record import Evaluation, Label
from search.evaluation.scores import comparisons_of, scores_of
from trainables.core.protocols import Part, Protocol
from trainables.trial import Episode


def answers(label: Label, right: np.ndarray, seed: int, shots: int = 4) -> ModelPredictions:
    said = np.where(right, 0, 1).astype(np.uint16)
    return ModelPredictions(label, "pets", shots, seed, said, np.ones(len(said), np.float32))


def table(
    part: Part, models: dict[Label, list[np.ndarray]], seeds: tuple[int, ...], target: str = "pets"
) -> PredictionTable:
    """All images are of class 0; `models` says which of them are classified correctly, per draw."""
    images = len(next(iter(models.values()))[0])
    given = tuple(
        answers(label, right, seed)
        for label, draws in models.items()
        for seed, right in zip(seeds, draws, strict=True)
    )
    rows, truth = np.arange(images, dtype=np.int32), np.zeros(images, np.uint16)
    return PredictionTable(target, part, ("cat", "dog"), rows, (), truth, given)


def evaluated(
    protocol: Protocol, tables: list[PredictionTable], seeds: tuple[int, ...], same: bool = False
) -> Evaluation:
    episodes = [Episode("pets", 4, seed) for seed in seeds]
    first = {e: episodes[0] if same else e for e in episodes}
    found = Evaluation(0, 0.5, seeds, protocol, scores_of(tables, seeds, first))
    return replace(found, comparisons=comparisons_of(found, tables))


def random(share: float, images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(images) < share


def test_one_draw_has_the_interval_of_paired_proportions() -> None:
    was = np.array([True] * 60 + [False] * 40)
    now = np.array([True] * 55 + [False] * 5 + [True] * 15 + [False] * 25)
    found = evaluated(
        "few-shot", [table("test", {"zero-shot": [was], "winner": [now]}, (7,))], (7,)
    )
    (one,) = found.comparisons
    assert (one.label, one.baseline, one.changed) == ("winner", "zero-shot", 20)
    assert one.difference == pytest.approx(0.1)
    assert one.half_width == pytest.approx(1.959964 * math.sqrt(20.0196) / 102, abs=1e-5)
    (gain,) = found.gains
    assert gain.over_draws is None
    assert gain.verdict == "real"
    assert gain.sentence() == (
        "The gain over zero-shot is real (+10.0 points): the 95 % interval over test images "
        "[+1.4, +18.6] excludes 0."
    )
    assert "fresh" not in found.draws + found.draws_note


def test_models_that_agree_on_every_image() -> None:
    right = random(0.7, 50, 1)
    models: dict[Label, list[np.ndarray]] = {"paper": [right], "winner": [right]}
    found = evaluated("few-shot", [table("test", models, (7,))], (7,))
    (gain,) = found.gains
    assert gain.verdict == "none"
    assert "no gain over the paper's setting" in gain.sentence()
    assert gain.over_images.high == pytest.approx(1.959964 / 52, abs=1e-5)


def test_several_draws_have_both_intervals() -> None:
    """Images are the sample of one, draws that of the other: a gain is real if both exclude 0."""
    seeds = (4, 5, 6)
    was = [random(0.6, 2000, seed) for seed in seeds]
    steady = [w | random(0.2, 2000, 10 + seed) for w, seed in zip(was, seeds, strict=True)]
    models: dict[Label, list[np.ndarray]] = {"zero-shot": was, "winner": steady}
    (gain,) = evaluated("few-shot", [table("test", models, seeds)], seeds).gains
    assert gain.over_draws is not None
    assert gain.verdict == "real"
    assert "the 95 % intervals over test images" in gain.sentence()
    assert "and over draws" in gain.sentence()
    assert gain.sentence().endswith("exclude 0.")
    # The same images gain, but another draw loses as much as one gains.
    models["winner"] = [was[0] | random(0.4, 2000, 3), was[1], was[2] & random(0.99, 2000, 4)]
    (gain,) = evaluated("few-shot", [table("test", models, seeds)], seeds).gains
    assert gain.over_images.low is not None
    assert gain.over_images.low > 0
    assert gain.verdict == "uncertain"
    assert "over draws [" in gain.sentence()
    assert "over test images" not in gain.sentence()


def test_a_loss_is_called_a_loss() -> None:
    was = random(0.9, 500, 1)
    models: dict[Label, list[np.ndarray]] = {"paper": [was], "winner": [was & random(0.7, 500, 2)]}
    (gain,) = evaluated("few-shot", [table("test", models, (7,))], (7,)).gains
    assert gain.verdict == "loss"
    assert gain.sentence().startswith("The loss against the paper's setting is real (-")


def test_same_training_images_are_one_value() -> None:
    right = random(0.7, 50, 1)
    models: dict[Label, list[np.ndarray]] = {"zero-shot": [right] * 2, "winner": [right] * 2}
    tables = [table("test", models, (4, 5))]
    same = evaluated("few-shot", tables, (4, 5), same=True)
    assert [s.distinct for s in same.scores] == [(0,), (0,)]
    assert all(len(s.distinct_values) == 1 for s in same.scores)
    assert "pets with 4 shots has 1 distinct set of training images in 2 draws" in same.draws_note
    different = evaluated("few-shot", tables, (4, 5))
    assert different.draws_note == ""
    # The zero-shot model depends on no draw: a deviation of 0 would suggest that it was measured.
    assert [len(s.distinct_values) for s in different.scores] == [1, 2]
    assert different.deviation("zero-shot") is None
    assert different.deviation("winner") == 0


def test_the_harmonic_mean_s_interval_is_the_bootstrap_s() -> None:
    """By resampling the images of both halves, as one would without a formula."""
    models: dict[Part, dict[Label, list[np.ndarray]]] = {}
    for number, part in enumerate(("base", "new")):
        was = random(0.5 + 0.2 * number, 400, number)
        now = np.where(random(0.2, 400, 5 + number), random(0.9, 400, 9), was)
        models[part] = {"zero-shot": [was], "winner": [now]}  # type: ignore[index]
    tables = [table(part, both, (7,)) for part, both in models.items()]
    (one,) = evaluated("base-to-new", tables, (7,)).comparisons
    rng, values = np.random.default_rng(0), []
    for _ in range(4000):
        rows = {part: rng.integers(0, 400, 400) for part in models}
        means = {
            label: [models[part][label][0][rows[part]].mean() for part in models]
            for label in ("zero-shot", "winner")
        }
        figures = {k: 2 * b * n / (b + n) for k, (b, n) in means.items()}
        values.append(figures["winner"] - figures["zero-shot"])
    assert one.half_width == pytest.approx(1.96 * float(np.std(values)), rel=0.06)
    assert one.difference == pytest.approx(float(np.mean(values)), abs=0.003)
