"""From predictions to the scores and comparisons of an evaluation.

Notation: n images, d [n] each image's contribution to the difference of two models.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from search.evaluation.predictions import ModelPredictions, PredictionTable
from search.evaluation.record import FIGURE_PART, Comparison, Evaluation, Label, Score
from search.evaluation.statistics import half_width_over_images
from trainables.core.protocols import Part
from trainables.trial import Episode


def scores_of(
    tables: Sequence[PredictionTable], seeds: Sequence[int], first: dict[Episode, Episode]
) -> tuple[Score, ...]:
    """One score per model and table, with a value per seed. `first` maps each episode to the first
    one with the same training images."""
    found = []
    for table in tables:
        rows: dict[tuple[Label, str, int], list[ModelPredictions]] = {}
        for answers in table.answers:
            rows.setdefault(answers.model, []).append(answers)
        for label in get_args(Label):
            for (own, dataset, shots), models in rows.items():
                if own == label:
                    models.sort(key=lambda answers: seeds.index(answers.seed))
                    values = tuple(table.accuracy(answers) for answers in models)
                    images, distinct = (
                        len(table.truth),
                        _distinct(label, dataset, shots, seeds, first),
                    )
                    found.append(
                        Score(
                            *(label, values, dataset, shots, table.target, table.part, images),
                            distinct,
                        )
                    )
    return tuple(found)


def _distinct(
    label: Label, dataset: str, shots: int, seeds: Sequence[int], first: dict[Episode, Episode]
) -> tuple[int, ...]:
    """Places of the seeds that are the first with their training images; the zero-shot model has
    none."""
    if label == "zero-shot":
        return (0,)
    fresh = {
        episode.seed
        for episode, original in first.items()
        if episode == original and (episode.dataset, episode.shots) == (dataset, shots)
    }
    return tuple(place for place, seed in enumerate(seeds) if seed in fresh)


def comparisons_of(found: Evaluation, tables: Sequence[PredictionTable]) -> tuple[Comparison, ...]:
    """Every model against those before it in the order of labels."""
    pairs = itertools.combinations(found.labels, 2)
    return tuple(_compare(found, tables, label, baseline) for baseline, label in pairs)


def _compare(
    found: Evaluation, tables: Sequence[PredictionTable], label: Label, baseline: Label
) -> Comparison:
    difference = statistics.fmean(found.figure(label)) - statistics.fmean(found.figure(baseline))
    slopes = {one: _slopes(found, one) for one in (label, baseline)}
    parts, changed = [], 0
    for table in tables:
        if table.part not in slopes[label]:
            continue  # not part of the protocol's figure
        d: NDArray[np.float64] = np.zeros(len(table.truth))
        differs = np.zeros(len(table.truth), bool)
        weight = 0.0
        for own, other in _pairs(table, label, baseline):
            place = found.seeds.index(own.seed)
            up, down = slopes[label][table.part][place], slopes[baseline][table.part][place]
            right, wrong = table.right(own), table.right(other)
            d += up * right - down * wrong
            differs |= right != wrong
            weight += (up + down) / 2
        parts.append((weight, d))
        changed += int(differs.sum())
    return Comparison(label, baseline, difference, half_width_over_images(parts), changed)


def _slopes(found: Evaluation, label: Label) -> dict[Part, list[float]]:
    """By how much the mean figure rises with the accuracy of one score, per part and draw."""
    draws = len(found.seeds)
    if found.protocol in FIGURE_PART:
        part = FIGURE_PART[found.protocol]
        return {part: [1 / (draws * len(found.of(label, part)))] * draws}
    # The harmonic mean H of b and n: dH/db = 2 n^2 / (b + n)^2, and likewise for n.
    base, new = found.average(label, "base"), found.average(label, "new")
    rows = draws * len(found.of(label, "base"))
    halves: dict[Part, list[float]] = {"base": [], "new": []}
    for b, n in zip(base, new, strict=True):
        total = (b + n) ** 2 or 1.0
        halves["base"].append(2 * n**2 / total / rows)
        halves["new"].append(2 * b**2 / total / rows)
    return halves


def _pairs(
    table: PredictionTable, label: Label, baseline: Label
) -> list[tuple[ModelPredictions, ModelPredictions]]:
    """The predictions of both models, draw by draw."""
    others = {(a.dataset, a.shots, a.seed): a for a in table.answers if a.label == baseline}
    return [(a, others[a.dataset, a.shots, a.seed]) for a in table.answers if a.label == label]
