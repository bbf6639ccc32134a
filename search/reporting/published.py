"""Published results that are comparable with those of a sweep.

All are top-1 test accuracies in per cent, means over three seeds, with the weights of OpenAI's CLIP
and the draws of CoOp with seeds 1 to 3.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache

from search.evaluation.record import Score
from search.papers.cells import ZERO_SHOT
from search.papers.schema import AVERAGE, Row, Table, papers
from trainables.core.protocols import Part
from trainables.data.registry import BASE_TASKS
from trainables.trial import TaskSpec


@dataclass(frozen=True)
class Published:
    """One row of a paper's table: one method, one backbone, one number of shots."""

    method: str
    """Name of the method in the paper."""
    source: str
    """Paper and table that the row is from."""
    backbone: str
    """Architecture, as named by open_clip."""
    shots: int
    """Training images per class; 0 for the zero-shot model."""
    part: Part = "test"
    """Part of the test images; shifts are those of ImageNet, the training data set."""
    values: dict[str, float] = field(default_factory=dict)
    """Accuracy in per cent, by test data set."""
    average: float | None = None
    """Average over the eleven data sets as the paper prints it, if it does."""

    def mean(self, targets: Collection[str]) -> float | None:
        """Return the average over exactly these data sets; None if it is unknown."""
        known = [self.values[target] for target in targets if target in self.values]
        if known and len(known) == len(targets):
            return statistics.fmean(known)
        return self.average if set(targets) == set(BASE_TASKS) else None

    def has(self, other: Published) -> bool:
        """Whether it is the same model and has all of the other's values."""
        same = (self.method, self.backbone, self.shots, self.part)
        return same == (other.method, other.backbone, other.shots, other.part) and (
            other.values.items() <= self.values.items() and other.average in (None, self.average)
        )


@cache
def published() -> tuple[Published, ...]:
    """Return the papers' main rows, in the order of their files. A row that several tables print is
    that of the table with most numbers."""
    found: list[Published] = []
    for paper in papers().values():
        for key, table in paper.tables.items():
            for row in table.rows:
                if row.compare:
                    found += _rows(f"{paper.short}, {key.replace('-', ' ')}", table, row)
    return tuple(
        one
        for place, one in enumerate(found)
        if not any(other.has(one) for other in found[:place])
        and not any(other.has(one) and not one.has(other) for other in found[place:])
    )


def _rows(source: str, table: Table, row: Row) -> Iterator[Published]:
    """The accuracies of a row, by what they are comparable with."""
    for numbers in row.published:
        values = dict(numbers.values)
        average = values.pop(AVERAGE, None)
        if numbers.measure != "accuracy" or numbers.part == "harmonic":
            continue
        backbone = numbers.backbone or (row.backbones or table.backbones)[0]
        shots = numbers.shots or (row.shots or table.shots)[0]
        shots = 0 if row.method == ZERO_SHOT else shots
        start = (row.name, source, backbone, shots)
        if table.protocol == "domain-generalization":
            first = table.datasets[0]
            yield Published(*start, "test", {first: values.pop(first)})
            yield Published(*start, "shift", values)
        else:
            yield Published(*start, numbers.part or "test", values, average)


def comparable_rows(task: TaskSpec, scores: list[Score]) -> list[Published]:
    """Return the published rows that are comparable with `scores`.

    They share the part of the data sets, the published splits with every image, the rule of draws,
    the number of shots, the backbone and OpenAI's weights. Zero-shot rows match any number of
    shots.
    """
    if task.draws != "coop" or task.generate_split or task.skip_unreadable:
        return []
    return [
        row
        for row in published()
        if _is_openai(task.backbone, row.backbone) and _has_a_place(row, scores)
    ]


def _has_a_place(row: Published, scores: list[Score]) -> bool:
    """Whether the row has a number that is comparable with these scores."""
    targets = {s.target for s in scores if s.part == row.part and row.shots in (0, s.shots)}
    return not targets.isdisjoint(row.values) or row.mean(targets) is not None


def _is_openai(spec: str, architecture: str) -> bool:
    """Whether a backbone is `architecture` with OpenAI's weights. Weights from a file never match,
    because their origin is unknown."""
    name, _, tag = spec.partition(":")
    return name.removesuffix("-quickgelu") == architecture and tag in ("", "openai")
