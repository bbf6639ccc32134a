"""Optuna's pruners by name: the rules by which unpromising trials stop early.

They decide from the study, which a restart restores. A step is an eighth of a trial's own
budget, see `trainables/trial_run.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)

from trainables.report import REPORTS_PER_TRIAL

WARMUP_PARTS = 2
"""Parts that every trial may train before it can be stopped."""


def _asha() -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=WARMUP_PARTS, reduction_factor=3)


def _hyperband() -> BasePruner:
    return HyperbandPruner(
        min_resource=WARMUP_PARTS, max_resource=REPORTS_PER_TRIAL, reduction_factor=3
    )


def _median() -> BasePruner:
    return MedianPruner(n_startup_trials=4, n_warmup_steps=WARMUP_PARTS)


def _wilcoxon() -> BasePruner:
    return WilcoxonPruner(p_threshold=0.1, n_startup_steps=WARMUP_PARTS)


PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "wilcoxon": _wilcoxon,
    "none": NopPruner,
}

IN_SEQUENCE = frozenset({"wilcoxon"})
"""Pruners that compare whole cells (seeds) pairwise: with them a trial trains seed after seed."""
