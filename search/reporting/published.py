"""Results published in papers, read from `published.csv`.

TaskRes: Yu et al., CVPR 2023, arXiv:2211.10277. R-AMT: Zheng et al., Regularized Mask Tuning, ICCV
2023, arXiv:2307.15049. All are top-1 test accuracies in per cent, means over three seeds, with the
weights of OpenAI's CLIP and the draws of CoOp with seeds 1 to 3. Averages that can be computed from
other rows are not in the file.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import cast

from search.core.task import Part
from search.evaluation.record import Score
from trainables.data.registry import BASE_TASKS
from trainables.trial import TaskSpec

_AVERAGE = "average"
"""Target of a row that has only the average over the eleven data sets."""


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
    """Average over the eleven data sets, if the paper reports only that."""

    def mean(self, targets: Collection[str]) -> float | None:
        """Return the average over exactly these data sets; None if it is unknown."""
        if self.average is not None:
            return self.average if set(targets) == set(BASE_TASKS) else None
        known = [self.values[target] for target in targets if target in self.values]
        return statistics.fmean(known) if known and len(known) == len(targets) else None


@cache
def published() -> tuple[Published, ...]:
    """Return every row, in the order of the file."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    text = files("search.reporting").joinpath("published.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        key = (row["method"], row["source"], row["backbone"], row["shots"], row["part"])
        found.setdefault(key, {})[row["target"]] = float(row["accuracy"])
    return tuple(
        Published(method, source, backbone, int(shots), cast(Part, part), values, average)
        for (method, source, backbone, shots, part), values in found.items()
        for average in [values.pop(_AVERAGE, None)]
    )


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
