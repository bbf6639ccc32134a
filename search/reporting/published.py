"""Numbers that papers report, with the setting that they were measured in.

TaskRes: Yu et al., CVPR 2023, arXiv:2211.10277. R-AMT: Zheng et al., Regularized Mask Tuning, ICCV
2023, arXiv:2307.15049. All are top-1 test accuracies in per cent, means over three seeds, with the
weights of OpenAI's CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass

from search.judging.evaluation import Score
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
"""The order of each paper's columns."""


@dataclass(frozen=True)
class Published:
    """One row of a paper's table: one method, one backbone, one number of shots."""

    method: str
    """As the paper calls it."""
    source: str
    """Paper and table."""
    backbone: str
    """Architecture, in open_clip's name."""
    shots: int
    """Images a class; 0 for the zero-shot model."""
    values: dict[str, float]
    """Per cent by data set."""


def _row(
    paper: str, method: str, source: str, backbone: str, shots: int, numbers: str
) -> Published:
    values = dict(zip(_SETS[paper], map(float, numbers.split()), strict=True))
    return Published(method, source, backbone, shots, values)


_TASKRES = "TaskRes, table 8"
_RMT = "R-AMT, 16-shot comparison"

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
    # Table 4's line of the text residual, on ImageNet alone.
    *(
        Published("TaskRes", "TaskRes, table 4", "RN50", shots, {"imagenet": value})
        for shots, value in ((2, 62.17), (4, 62.93), (8, 64.03))
    ),
)
"""Rows of which every number was read in the paper's text; a paper's averages are not repeated,
they follow. The papers' draws are CoOp's, with seeds 1 to 3."""


def comparable_rows(task: TaskSpec, scores: list[Score]) -> list[Published]:
    """The published rows that were measured as these scores were: few-shot on the whole test
    split, by the same rule of draws, on the same data sets and shots, with the same backbone and
    OpenAI's weights. A row of zero-shot accuracies fits any number of shots."""
    if task.protocol != "few-shot" or task.draws != "coop":
        return []
    wanted = {(s.dataset, s.shots) for s in scores}
    names = {dataset for dataset, _ in wanted}
    return [
        row
        for row in PUBLISHED
        if _is_openai(task.backbone, row.backbone)
        and any(
            (name, row.shots) in wanted or (row.shots == 0 and name in names) for name in row.values
        )
    ]


def _is_openai(spec: str, architecture: str) -> bool:
    """Whether a backbone is that architecture with OpenAI's weights. A file's name says nothing of
    its weights, so it does not count."""
    name, _, tag = spec.partition(":")
    return name.removesuffix("-quickgelu") == architecture and tag in ("", "openai")
