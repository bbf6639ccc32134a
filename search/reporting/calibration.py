"""Calibration of predictions: expected calibration error and reliability diagram.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599), section 2.

Notation: n images, M bins; acc and conf the accuracy and the mean confidence of a bin's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from search.evaluation.record import LABELS
from search.reporting.evaluated import EvaluatedEpisode, chosen_note, places, shown_episode
from search.reporting.figures import BLACK, COLOURS, MARKERS, Figure, finish, legend, painting
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table, mean_of

BINS = 15
"""Number of bins (M), as in the paper."""


@dataclass(frozen=True)
class Reliability:
    """Images binned by confidence into ((m - 1) / M, m / M]."""

    images: NDArray[np.int64]
    """[M], number of images."""
    right: NDArray[np.int64]
    """[M], number of correctly predicted images."""
    confidence: NDArray[np.float64]
    """[M], sum of confidences."""

    @property
    def error(self) -> float:
        """ECE: sum over bins of (images / n) |acc - conf| (equation 3), a fraction."""
        gaps = np.abs(self.right - self.confidence)
        return float(gaps.sum() / self.images.sum())


def reliability(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> Reliability:
    """Bin images by `confidence` [n] (fractions); `right` [n] marks correct predictions."""
    exact = confidence.astype(np.float64)
    place = np.searchsorted(np.arange(1, BINS) / BINS, exact, side="left")
    return Reliability(
        np.bincount(place, minlength=BINS),
        np.bincount(place[right], minlength=BINS),
        np.bincount(place, exact, minlength=BINS).astype(np.float64),
    )


def calibration_section(source: Source) -> Section | None:
    """Build the table of all episodes and one reliability diagram; None without predictions."""
    found = places(source.sheets)
    if not found:
        return None
    notes = [
        "A model is calibrated if p % of its predictions with a confidence of p % are correct. ECE "
        f"is the mean gap between accuracy and confidence over {BINS} equally wide bins of "
        "confidence, weighted by number of images (Guo et al. 2017, arXiv:1706.04599). Confidence "
        "is the softmax probability of the prediction, without rescaling."
    ]
    if note := chosen_note(found):
        notes.append(note)
    return Section(
        "calibration",
        "Calibration",
        tuple(notes),
        (calibration_table(found),),
        (_figure(shown_episode(found)),),
    )


def calibration_table(found: Sequence[EvaluatedEpisode]) -> Table:
    """Build a table with one row per episode and model."""
    rows = []
    for place in found:
        for label, draws in place.draws.items():
            errors = [reliability(a.confidence, place.sheet.right(a)).error for a in draws]
            accuracies = [place.sheet.accuracy(a) for a in draws]
            sure = [float(a.confidence.mean(dtype=np.float64)) for a in draws]
            rows.append(
                (place.name, LABELS[label], mean_of(accuracies), mean_of(sure), mean_of(errors))
            )
    headings = ("judged on", "model", "accuracy", "mean confidence", "ECE")
    note = "Mean and sample standard deviation over the draws."
    return Table("calibration", "Calibration (%)", headings, tuple(rows), note, labels=2)


def _figure(place: EvaluatedEpisode) -> Figure:
    with painting():
        canvas = Canvas(figsize=(6.4, 5.0), layout="constrained")
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for i, (label, draws) in enumerate(place.draws.items()):
            found = reliability(
                np.concatenate([a.confidence for a in draws]),
                np.concatenate([place.sheet.right(a) for a in draws]),
            )
            _line(upper, found, i, LABELS[label])
            share = 100 * found.images / found.images.sum()
            centres = (np.arange(BINS) + 0.5) / BINS
            lower.plot(100 * centres, share, color=COLOURS[i], marker=MARKERS[i], markersize=4)
        upper.plot([0, 100], [0, 100], color=BLACK, linestyle="--", linewidth=1)
        upper.set(ylabel="test accuracy (%)", xlim=(0, 100), ylim=(0, 100))
        lower.set(xlabel="confidence of the prediction (%)", ylabel="images (%)", ylim=(0, None))
        legend(canvas)
        caption = (
            f"{place.name}; all draws together. Top: accuracy against mean confidence of the "
            f"non-empty bins (of {BINS}); points below the dashed line are overconfident. "
            "Bottom: share of the images in each bin."
        )
        return finish("reliability", "Reliability", caption, canvas)


def _line(axes: Axes, found: Reliability, place: int, name: str) -> None:
    there = found.images > 0
    images = found.images[there]
    axes.plot(
        100 * found.confidence[there] / images,
        100 * found.right[there] / images,
        color=COLOURS[place],
        marker=MARKERS[place],
        markersize=5,
        label=name,
    )
