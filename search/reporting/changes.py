"""Test images that the winner and its baselines classify differently."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from search.evaluation.examples import SIDE, Example
from search.evaluation.predictions import ModelPredictions
from search.evaluation.record import LABELS, Label
from search.reporting.evaluated import EvaluatedEpisode, places
from search.reporting.section import Gallery, Picture, Section
from search.reporting.source import Source
from search.reporting.tables import Table

_BASELINES: tuple[Label, ...] = ("zero-shot", "start", "paper")


def changes_section(source: Source) -> Section | None:
    """Build counts and example images; None without stored predictions."""
    if not source.sheets:
        return None
    galleries = [
        gallery(source.examples, True, "Correct with the winner, wrong with the zero-shot model"),
        gallery(source.examples, False, "Correct with the zero-shot model, wrong with the winner"),
    ]
    shown = tuple(g for g in galleries if g is not None)
    notes = [
        "This section counts the test images that two models classify differently, which their "
        "accuracies alone do not show."
    ]
    if shown:
        notes.append(
            f"The pictures are evenly spaced samples of all such images of a test split (for the "
            f"first draw with the most shots), stored with at most {SIDE} pixels per side."
        )
    else:
        notes.append(
            "There are no pictures: the data set contains only features, or the two models agree "
            "on every image."
        )
    tables = (changes_table(places(source.sheets)),)
    return Section("changes", "Right and wrong", tuple(notes), tables, galleries=shown)


def changes_table(found: Sequence[EvaluatedEpisode]) -> Table:
    """Build a table of image counts per episode and baseline, averaged over draws."""
    rows = []
    for place in found:
        for baseline in (label for label in _BASELINES if label in place.draws):
            pairs = zip(place.draws[baseline], place.draws["winner"], strict=True)
            counts = [_four(place, was, now) for was, now in pairs]
            means = (statistics.fmean(column) for column in zip(*counts, strict=True))
            images = str(len(place.sheet.truth))
            cells = (f"{mean:.1f}" for mean in means)
            rows.append((place.name, LABELS[baseline], images, *cells))
    headings = (
        *("judged on", "winner against", "images", "wrong to right", "right to wrong"),
        *("both right", "both wrong"),
    )
    note = "Means over the draws; both models of a pair are from the same draw."
    title = "What the winner changes (test images)"
    return Table("changes", title, headings, tuple(rows), note, labels=2)


def gallery(examples: Sequence[Example], gained: bool, title: str) -> Gallery | None:
    """Return a gallery of the gained or lost examples; None if there are none."""
    pictures = [
        Picture(e.png, _caption(e), e.file or "a test image")
        for e in examples
        if e.gained == gained
    ]
    return Gallery(title, tuple(pictures)) if pictures else None


def _caption(example: Example) -> str:
    who, said = ("zero-shot", example.before) if example.gained else ("winner", example.after)
    return f"{example.truth}; {who}: {said}"


def _four(place: EvaluatedEpisode, was: ModelPredictions, now: ModelPredictions) -> tuple[int, ...]:
    before, after = place.sheet.right(was), place.sheet.right(now)
    kinds = (~before & after, before & ~after, before & after, ~before & ~after)
    return tuple(int(kind.sum()) for kind in kinds)
