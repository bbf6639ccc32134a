"""The spaces that can be named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from spaces.base import Space, TaskFacts
from spaces.baselines import BASELINES
from spaces.declared import DeclaredSpace
from spaces.pipeline import PipelineSpace
from spaces.prompts import COCOOP, COOP, PROGRAD
from spaces.rmt import MaskSpace
from spaces.rmt_variants import MaskVariantSpace
from spaces.taskres import TaskResSpace
from spaces.text_classifier import ENHANCED_BASE, TextAdapterSpace
from spaces.towers import clip_lora_space, vpt_space
from trainables.text import did_you_mean


@dataclass(frozen=True)
class SpaceEntry:
    """A space, and the effort that suits what its trials cost."""

    build: Callable[[TaskFacts], Space]
    """Makes the space for a task."""
    trials: int
    """Trials of a sweep where the user does not say."""
    seeds: tuple[int, ...]
    """Few-shot draws a trial is averaged over where the user does not say."""


def _joined(setting: TaskFacts, names: tuple[str, ...]) -> Space:
    return PipelineSpace(tuple(SPACES[name].build(setting) for name in names))


SPACES: dict[str, SpaceEntry] = {
    # A mask trial is seconds to hours of training; a residual trial on cached features is not
    # even one second, so three draws, which make its value much less noisy, cost nothing.
    "rmt": SpaceEntry(MaskSpace, trials=16, seeds=(1,)),
    "rmt-budget": SpaceEntry(partial(MaskSpace, vary="flip_budget"), trials=16, seeds=(1,)),
    "rmt-variants": SpaceEntry(MaskVariantSpace, trials=24, seeds=(1,)),
    "rmt-text": SpaceEntry(partial(MaskVariantSpace, method="rmt-text"), trials=24, seeds=(1,)),
    "rmt-both": SpaceEntry(partial(MaskVariantSpace, method="rmt-both"), trials=24, seeds=(1,)),
    "clip-lora": SpaceEntry(clip_lora_space, trials=16, seeds=(1,)),
    "vpt": SpaceEntry(vpt_space, trials=16, seeds=(1,)),
    "taskres": SpaceEntry(TaskResSpace, trials=40, seeds=(1, 2, 3)),
    "text-adapter": SpaceEntry(TextAdapterSpace, trials=40, seeds=(1, 2, 3)),
    "enhanced-base": SpaceEntry(
        partial(DeclaredSpace, name="enhanced-base", method="enhanced-base", ranges=ENHANCED_BASE),
        trials=40,
        seeds=(1, 2, 3),
    ),
    # On frozen features too: a second or a few, or nothing but one fit.
    **{
        name: SpaceEntry(
            partial(DeclaredSpace, name=name, method=name, ranges=ranges),
            trials=40,
            seeds=(1, 2, 3),
        )
        for name, ranges in BASELINES.items()
    },
    # Every step passes all classes through the text tower; CoCoOp's for every single image.
    "coop": SpaceEntry(
        partial(DeclaredSpace, name="coop", method="coop", ranges=COOP),
        trials=24,
        seeds=(1,),
    ),
    "cocoop": SpaceEntry(
        partial(DeclaredSpace, name="cocoop", method="cocoop", ranges=COCOOP),
        trials=12,
        seeds=(1,),
    ),
    "prograd": SpaceEntry(
        partial(DeclaredSpace, name="prograd", method="prograd", ranges=PROGRAD),
        trials=24,
        seeds=(1,),
    ),
    # As many trials as its largest stage asks for, and the draws of the dearest.
    "rmt+taskres": SpaceEntry(partial(_joined, names=("rmt", "taskres")), trials=40, seeds=(1,)),
    "rmt+tip-adapter-f": SpaceEntry(
        partial(_joined, names=("rmt", "tip-adapter-f")), trials=40, seeds=(1,)
    ),
    "rmt+coop": SpaceEntry(partial(_joined, names=("rmt", "coop")), trials=24, seeds=(1,)),
    "enhanced-base+taskres": SpaceEntry(
        partial(_joined, names=("enhanced-base", "taskres")), trials=40, seeds=(1, 2, 3)
    ),
}


class SpaceError(ValueError):
    """There is no such space: rule, value and remedy."""


def find_space(name: str) -> SpaceEntry:
    """A space of the registry, or several with `+` between them, which are stages of a pipeline.

    Raises `SpaceError`. Whether one stage can follow another is told by `TrialConfig.problems`.
    """
    if name in SPACES:
        return SPACES[name]
    stages = tuple(name.split("+"))
    if len(stages) == 1:
        raise SpaceError(did_you_mean("space", name, SPACES))
    for stage in stages:
        if stage not in SPACES:
            known = [other for other in SPACES if "+" not in other]
            raise SpaceError(did_you_mean("stage", stage, known))
    entries = [SPACES[stage] for stage in stages]
    return SpaceEntry(
        partial(_joined, names=stages),
        trials=max(entry.trials for entry in entries),
        seeds=min((entry.seeds for entry in entries), key=len),
    )
