"""Test accuracy per class: which classes gain from tuning, and which lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from search.evaluation.record import LABELS, Label
from search.reporting.evaluated import EvaluatedEpisode, chosen_note, places, shown_episode
from search.reporting.figures import COLOURS, MARKERS, Figure, draw, plain
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table, percent

MOST_CLASSES = 30
"""Largest number of classes that are all shown; of more, only those at both ends."""
_ENDS = 10


@dataclass(frozen=True)
class _Class:
    """One class of an episode."""

    name: str
    images: int
    accuracy: dict[Label, float | None]

    @property
    def gain(self) -> float | None:
        """Gain of the winner over the zero-shot model, a fraction; None without test images."""
        first, last = self.accuracy["zero-shot"], self.accuracy["winner"]
        return None if first is None or last is None else last - first

    def episodes(self) -> tuple[str, ...]:
        """Return the cells of its row, in the order of `_headings`."""
        gain = "-" if self.gain is None else f"{100 * self.gain:+z.2f}"
        return (
            self.name,
            str(self.images),
            *(percent(share) for share in self.accuracy.values()),
            gain,
        )


def _headings(place: EvaluatedEpisode) -> tuple[str, ...]:
    return ("class", "images", *(LABELS[label] for label in place.draws), "gain over zero-shot")


def classes_section(source: Source) -> Section | None:
    """Build the table of one episode, and a file with all episodes; None without predictions."""
    found = places(source.sheets)
    if not found:
        return None
    place = shown_episode(found)
    ranked = _ranked(place)
    few = len(ranked) <= MOST_CLASSES
    seen = [one for one in ranked if one.gain is not None]
    shown = ranked if few else [*seen[:_ENDS], *seen[_ENDS:][-_ENDS:]]
    which = "" if few else f", the {_ENDS} that gain most and the {_ENDS} that lose most"
    table = Table(
        "classes",
        f"Test accuracy of each class: {place.name}{which} (%)",
        _headings(place),
        tuple(one.episodes() for one in shown),
        "Means over the draws; the gain is in points.",
    )
    note = chosen_note(found)
    notes = (
        *([note] if note else []),
        f"All {sum(len(p.sheet.classes) for p in found)} evaluated classes are listed in "
        "tables/classes-all.csv.",
    )
    return Section(
        "classes",
        "Classes",
        notes,
        (table,),
        (_figure(shown, place, which),),
        files=(_all(found),),
    )


def _ranked(place: EvaluatedEpisode) -> list[_Class]:
    """Return the classes by decreasing gain; those without test images come last."""
    truth, count = place.sheet.truth, len(place.sheet.classes)
    images = np.bincount(truth, minlength=count)
    shares: dict[Label, list[float | None]] = {}
    for label, draws in place.draws.items():
        right = np.zeros(count, np.int64)
        for answers in draws:
            right += np.bincount(truth[place.sheet.right(answers)], minlength=count)
        whole = images * len(draws)
        shares[label] = [int(r) / int(n) if n else None for r, n in zip(right, whole, strict=True)]
    found = [
        _Class(name, int(images[i]), {label: share[i] for label, share in shares.items()})
        for i, name in enumerate(place.sheet.classes)
    ]
    seen = [one for one in found if one.gain is not None]
    return sorted(seen, key=lambda one: -(one.gain or 0.0)) + [c for c in found if c.gain is None]


def _all(found: Sequence[EvaluatedEpisode]) -> Table:
    rows = tuple((place.name, *one.episodes()) for place in found for one in _ranked(place))
    title = "Test accuracy of each class (%)"
    return Table("classes-all", title, ("judged on", *_headings(found[0])), rows, labels=2)


def _figure(shown: Sequence[_Class], place: EvaluatedEpisode, which: str) -> Figure:
    def paint(axes: Axes) -> None:
        rows = range(len(shown))
        for i, label in enumerate(place.draws):
            axes.plot(
                [100 * v if (v := one.accuracy[label]) is not None else np.nan for one in shown],
                rows,
                color=COLOURS[i],
                marker=MARKERS[i],
                linestyle="none",
                alpha=0.85,
                label=LABELS[label],
            )
        axes.set_yticks(rows, [plain(one.name[:30]) for one in shown], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="test accuracy (% of the class's images)")

    caption = f"{place.name}{which}; largest gain on top. Means over the draws."
    height = 1.2 + 0.24 * len(shown)
    return draw("classes", "Accuracy of each class", caption, paint, height=height)
