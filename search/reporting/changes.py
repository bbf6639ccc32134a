"""What became right and what became wrong: the winner against what it is compared with."""

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
    """Counts and a few images; None where no predictions were kept."""
    if not source.sheets:
        return None
    galleries = [
        gallery(source.examples, True, "Right by the winner, wrong by the zero-shot model"),
        gallery(source.examples, False, "Right by the zero-shot model, wrong by the winner"),
    ]
    shown = tuple(g for g in galleries if g is not None)
    notes = [
        "An accuracy says how many images are right, not which: these are the images on which two "
        "models differ."
    ]
    if shown:
        notes.append(
            f"The pictures are spread evenly over all such images of a test split (on the first "
            f"draw, with the most shots), not picked; at most {SIDE} pixels a side are kept."
        )
    else:
        notes.append(
            "There are no pictures: the data has features alone, or the two models differ on no "
            "image."
        )
    tables = (changes_table(places(source.sheets)),)
    return Section("changes", "Right and wrong", tuple(notes), tables, galleries=shown)


def changes_table(found: Sequence[EvaluatedEpisode]) -> Table:
    """A row a place and baseline: images of each kind, means over the draws."""
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
    note = "Means over the draws; both models of a pair are of the same draw."
    title = "What the winner changes (test images)"
    return Table("changes", title, headings, tuple(rows), note, labels=2)


def gallery(examples: Sequence[Example], gained: bool, title: str) -> Gallery | None:
    """Examples of one kind; None where there is none."""
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
