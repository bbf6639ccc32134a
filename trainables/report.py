"""What a trial reports after a step. Read by programs that train nothing, so it loads no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.core.protocols import Objective

if TYPE_CHECKING:
    from trainables.trial import Episode, TrialConfig

REPORTS_PER_TRIAL = 8
"""Limit of reports per trial when its episodes are trained in parallel."""
METRICS: Mapping[Objective, str] = {"accuracy": "val/accuracy", "likelihood": "val/likelihood"}
"""The metric of each objective."""
ZERO_SHOT: Mapping[Objective, str] = {
    "accuracy": "val/accuracy_zero_shot",
    "likelihood": "val/likelihood_zero_shot",
}
"""The same of the zero-shot model: metrics of a sweep's first trial, known before it trains."""
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Report:
    """Report for the latest step of a trial."""

    step: int
    """Number of steps done, from 1."""
    values: tuple[float, ...]
    """The task's objective after each step so far, in [0, 1]; see `TrialRun`."""
    rows: tuple[dict[str, float], ...]
    """Metrics per epoch since the last report, including `epoch` and `time` (unix seconds); after
    a continuation, since the first epoch."""
    finished: bool
    """Whether the whole budget has been trained."""
    metrics: dict[str, float]
    """The latest row, without `epoch` and `time`."""
    trained: bool = True
    """False if training provably changes nothing, so that none took place."""


def step_ends(config: TrialConfig, in_sequence: Sequence[Episode] = ()) -> list[int]:
    """Return the last epoch of each report step of a trial, counted over all stages. Its episodes
    are trained in parallel, or one after the other if they are given."""
    if in_sequence:
        owns = (config.for_episode(episode).total_epochs for episode in in_sequence)
        return list(itertools.accumulate(max(1, own) for own in owns))
    trained = [stage.epochs for stage in config.stages if not stage.fixed]
    trained = [epochs for epochs in trained if epochs]
    ends: list[int] = []
    for number, epochs in enumerate(trained):
        begun = sum(trained[:number])
        stride = math.ceil(epochs / max(1, REPORTS_PER_TRIAL // len(trained)))
        ends += [begun + min(end, epochs) for end in range(stride, epochs + stride, stride)]
    return ends or [0]
