"""All labelled images as one number of shots: that of the largest class."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from trainables.data.base import DataError
from trainables.data.few_shot import JOINED
from trainables.trial import TaskSpec

ALL = "all"
"""The number of shots that uses every labelled image."""


def with_all_shots(task: TaskSpec, data: str, draws: str | None) -> TaskSpec:
    """Return the task with the size of the largest class as its number of shots, and the rule of
    draws that uses all images unless `draws` is given. `data` is the folder of the benchmarks.

    Errors in the data are reported by the data checks.
    """
    rule = draws or (JOINED if task.validation == "folds" else "seeded-capped")
    own = replace(task, draws=rule)
    largest = 1
    with suppress(DataError):
        source = own.source(data)
        for name in own.sources:
            dataset = source.dataset(name)
            sizes = dataset.split("train").labels.bincount()
            if rule == JOINED:
                val = dataset.split("val").labels.bincount(minlength=len(sizes))
                sizes = sizes + val
            largest = max(largest, int(sizes.max()))
        own = replace(own, shots=(largest,))
    return own
