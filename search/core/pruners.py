"""Optuna's pruners by name: the rules by which unpromising trials stop early.

They decide from the study, which a restart restores. A step is an eighth of a trial's own
budget, see `trainables/trial_run.py`. Optuna is imported when a pruner is created: commands that
only read a sweep do without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainables.report import REPORTS_PER_TRIAL

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

WARMUP_PARTS = 2
"""Parts that every trial may train before it can be stopped."""
_REDUCTION = 3  # one trial in three passes a rung
_HALVING = frozenset({"asha", "hyperband"})


def _asha() -> BasePruner:
    from optuna.pruners import SuccessiveHalvingPruner

    return SuccessiveHalvingPruner(min_resource=WARMUP_PARTS, reduction_factor=_REDUCTION)


def _hyperband() -> BasePruner:
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(
        min_resource=WARMUP_PARTS, max_resource=REPORTS_PER_TRIAL, reduction_factor=_REDUCTION
    )


def _median() -> BasePruner:
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=4, n_warmup_steps=WARMUP_PARTS)


def _wilcoxon() -> BasePruner:
    from optuna.pruners import WilcoxonPruner

    return WilcoxonPruner(p_threshold=0.1, n_startup_steps=WARMUP_PARTS)


def _none() -> BasePruner:
    from optuna.pruners import NopPruner

    return NopPruner()


PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "wilcoxon": _wilcoxon,
    "none": _none,
}


def decision_steps(pruner: str, steps: int) -> tuple[int, ...]:
    """Return the report steps, of at most `steps`, after which a pruner can stop a trial or stores
    something with it. After the others it need not be asked."""
    if pruner == "none":
        return ()
    later = range(WARMUP_PARTS, steps + 1)
    if pruner in _HALVING:
        rungs = {WARMUP_PARTS * _REDUCTION**rung for rung in range(len(later))}
        return tuple(step for step in later if step in rungs)
    return tuple(later)


IN_SEQUENCE = frozenset({"wilcoxon"})
"""Pruners that compare whole cells (seeds) pairwise: with them a trial trains seed after seed."""
