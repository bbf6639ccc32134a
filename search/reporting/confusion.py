"""Confusion between classes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from search.evaluation.record import LABELS, Label
from search.reporting.classes import MOST_CLASSES
from search.reporting.evaluated import EvaluatedEpisode, chosen_note, places, shown_episode
from search.reporting.figures import SEQUENCE, Figure, draw, plain, shortened
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table, percent

_MOST_PAIRS = 15


def confusion_section(source: Source) -> Section | None:
    """Build the table of the winner's most frequent confusions, and the matrix if it is legible.

    None without predictions.
    """
    found = places(source.sheets)
    if not found:
        return None
    place = shown_episode(found)
    note = chosen_note(found)
    few = len(place.sheet.classes) <= MOST_CLASSES
    figures = (_figure(place),) if few else ()
    return Section(
        "confusion", "Confusion", (note,) if note else (), (pairs_table(place),), figures
    )


def counts(place: EvaluatedEpisode, label: Label) -> NDArray[np.int64]:
    """Count the images of class i that are predicted as class j, over all draws: [c, c]."""
    side = len(place.sheet.classes)
    total = np.zeros(side * side, np.int64)
    for answers in place.draws[label]:
        cells = place.sheet.truth.astype(np.int64) * side + answers.prediction
        total += np.bincount(cells, minlength=side * side)
    return total.reshape(side, side)


def pairs_table(place: EvaluatedEpisode) -> Table:
    """Build the table of the winner's most frequent confusions, with the other models' counts."""
    names, draws = place.sheet.classes, len(place.draws["winner"])
    matrices = {label: counts(place, label) for label in place.draws}
    winner = matrices["winner"]
    images = winner.sum(1)
    wrong = winner * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    rows = []
    for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[i, j]:
            cells = (f"{matrices[label][i, j] / draws:.1f}" for label in matrices)
            rows.append((names[i], names[j], *cells, percent(wrong[i, j] / images[i])))
    title = f"The winner's most frequent confusions: {place.name} (images)"
    headings = (
        "class",
        "taken for",
        *(LABELS[label] for label in matrices),
        "winner: % of the class",
    )
    note = "Means over the draws."
    return Table("confusion", title, headings, tuple(rows), note, labels=2)


def _figure(place: EvaluatedEpisode) -> Figure:
    names = [plain(shortened(name)) for name in place.sheet.classes]
    matrix = counts(place, "winner")
    with np.errstate(invalid="ignore"):  # a class without test images has no row
        shares = 100 * matrix / matrix.sum(1, keepdims=True)

    def paint(axes: Axes) -> None:
        image = axes.imshow(shares, cmap=SEQUENCE, vmin=0, vmax=100)
        if len(names) <= 12:
            for (i, j), share in np.ndenumerate(shares):
                if matrix[i, j]:
                    colour = "white" if share < 60 else "black"
                    text = f"{share:.0f}"
                    axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(visible=False)
        axes.set(xlabel="prediction (class)", ylabel="truth (class)")
        axes.figure.colorbar(image, ax=axes).set_label("share of the class's images (%)")

    side = 2.6 + 0.27 * len(names)
    caption = f"{place.name}; all draws together. Each row sums to 100 %."
    return draw("confusion", "The winner's confusion", caption, paint, side + 1.2, side)
