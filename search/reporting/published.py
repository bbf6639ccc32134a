"""Results published in papers, with the settings of their experiments.

TaskRes: Yu et al., CVPR 2023, arXiv:2211.10277. R-AMT: Zheng et al., Regularized Mask Tuning, ICCV
2023, arXiv:2307.15049. All are top-1 test accuracies in per cent, means over three seeds, with the
weights of OpenAI's CLIP.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass, field

from search.core.task import Part
from search.evaluation.record import Score
from trainables.data.benchmarks.layouts import IMAGENET_SHIFTS
from trainables.trial import TaskSpec

_SETS = {
    "taskres": (
        *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
        *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
    ),
    "rmt": (
        *("imagenet", "caltech101", "fgvc_aircraft", "stanford_cars", "oxford_flowers"),
        *("oxford_pets", "food101", "dtd", "eurosat", "ucf101", "sun397"),
    ),
}
"""Order of the columns in each paper's tables."""
_ELEVEN = frozenset(_SETS["taskres"])


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
    values: dict[str, float] = field(default_factory=dict)
    """Accuracy in per cent, by test data set."""
    part: Part = "test"
    """Part of the test images; shifts are those of ImageNet, the training data set."""
    average: float | None = None
    """Average over the eleven data sets, if the paper reports only that."""

    def mean(self, targets: Collection[str]) -> float | None:
        """Return the average over exactly these data sets; None if it is unknown."""
        if self.average is not None:
            return self.average if set(targets) == _ELEVEN else None
        known = [self.values[target] for target in targets if target in self.values]
        return statistics.fmean(known) if known and len(known) == len(targets) else None


def _row(
    paper: str, method: str, source: str, backbone: str, shots: int, numbers: str
) -> Published:
    values = dict(zip(_SETS[paper], map(float, numbers.split()), strict=True))
    return Published(method, source, backbone, shots, values)


def _shifts(
    method: str, paper: str, backbone: str, source: float | None, *shifts: float
) -> list[Published]:
    """Build the rows of models trained on ImageNet with 16 shots.

    `source` is the accuracy on ImageNet, or None if another row has it. `shifts` are the
    accuracies on its shifts; R-AMT reports only the first two.
    """
    values = dict(zip(IMAGENET_SHIFTS, shifts, strict=False))
    table = f"{paper}, domain generalisation"
    rows = [Published(method, table, backbone, 16, values, "shift")]
    if source is not None:
        rows.append(Published(method, table, backbone, 16, {"imagenet": source}))
    return rows


def _halves(method: str, shots: int, base: float, new: float) -> list[Published]:
    """R-AMT's averages from base to new classes; the harmonic mean follows from them."""
    table = "R-AMT, base-to-new averages"
    return [
        Published(method, table, "ViT-B-16", shots, part="base", average=base),
        Published(method, table, "ViT-B-16", shots, part="new", average=new),
    ]


_TASKRES = "TaskRes, table 8"
_RMT = "R-AMT, 16-shot comparison"
_ENHANCED = "TaskRes, enhanced base"

PUBLISHED: tuple[Published, ...] = (
    _row(
        *("taskres", "TaskRes", _TASKRES, "RN50", 1),
        "61.43 88.80 83.50 58.77 78.77 74.03 21.20 61.93 50.17 61.27 64.57",
    ),
    _row(
        *("taskres", "TaskRes", _TASKRES, "RN50", 16),
        "64.75 92.90 88.10 74.93 96.10 78.23 33.73 70.30 67.57 82.57 76.87",
    ),
    _row(
        *("rmt", "zero-shot CLIP", _RMT, "ViT-B-16", 0),
        "66.73 92.94 24.72 65.32 71.34 89.21 86.06 44.39 47.60 66.75 62.50",
    ),
    _row(
        *("rmt", "R-AMT", _RMT, "ViT-B-16", 16),
        "73.07 97.00 58.47 85.93 98.17 93.80 87.47 74.57 91.80 86.93 76.40",
    ),
    _row(
        *("rmt", "R-MMT", _RMT, "ViT-B-16", 16),
        "73.52 96.77 59.57 86.43 98.07 93.83 87.40 75.73 84.07 87.70 74.23",
    ),
    _row(
        *("rmt", "R-PMT", _RMT, "ViT-B-16", 16),
        "73.48 96.63 60.30 86.33 98.27 93.77 87.50 75.60 88.20 87.33 76.12",
    ),
    # Table 4: residuals of the text, the image and both, on ImageNet alone. The text's of 1 and 16
    # shots are in table 8.
    *(
        Published(method, "TaskRes, table 4", "RN50", shots, {"imagenet": value})
        for method, values in (
            ("TaskRes", {2: 62.17, 4: 62.93, 8: 64.03}),
            ("TaskRes-I", {1: 61.20, 2: 61.27, 4: 61.47, 8: 61.53, 16: 61.60}),
            ("TaskRes-I&T", {1: 61.53, 2: 62.10, 4: 62.73, 8: 63.83, 16: 64.67}),
        )
        for shots, value in values.items()
    ),
    *_shifts("TaskRes", "TaskRes", "RN50", None, 56.47, 35.83, 22.80, 60.70),
    *_shifts(_ENHANCED, "TaskRes", "RN50", 65.73, 57.00, 34.43, 21.50, 58.13),
    *_shifts("TaskRes", "TaskRes", "RN101", 67.70, 59.50, 41.70, 29.87, 68.07),
    *_shifts("TaskRes", "TaskRes", "ViT-B-32", 68.20, 59.20, 42.50, 31.43, 69.33),
    *_shifts("TaskRes", "TaskRes", "ViT-B-16", 73.07, 65.30, 49.13, 50.37, 77.70),
    *_shifts(_ENHANCED, "TaskRes", "ViT-B-16", 73.90, 65.85, 47.70, 49.17, 75.23),
    *_shifts("R-AMT", "R-AMT", "ViT-B-16", None, 65.91, 47.93),
    *_halves("zero-shot CLIP", 0, 69.34, 74.22),
    *_halves("AMT", 16, 86.17, 69.11),
    *_halves("R-AMT", 16, 85.71, 72.15),
)
"""Rows copied from the papers, without averages that can be computed from them. The papers use the
draws of CoOp with seeds 1 to 3."""


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
        for row in PUBLISHED
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
