"""The search spaces that `--space` can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from spaces.auto import MethodChoice
from spaces.base import Space
from spaces.baselines import (
    FINE_TUNING,
    LEARNED_PROMPTS,
    MAPLE,
    ON_FEATURES,
    PLOT,
    PROMPT_SRC,
    VPT,
    clip_lora_space,
)
from spaces.declared import DeclaredSpace, Ranges
from spaces.masks import rmt_space, variants_space
from spaces.pipeline import PipelineSpace
from spaces.text_classifiers import ENHANCED_BASE, LINEAR_ADAPTER, TASKRES, TEXT_ADAPTER
from trainables.core.plugins import Registry
from trainables.core.protocols import Objective, Validation
from trainables.core.text import did_you_mean
from trainables.methods.base import Method, TaskFacts
from trainables.methods.registry import METHODS


@dataclass(frozen=True)
class SpaceEntry:
    """A space, with a default size of its sweep that suits the cost of its trials."""

    build: Callable[[TaskFacts], Space]
    """Builds the space for a task."""
    trials: int
    """Default number of trials of a sweep."""
    seeds: tuple[int, ...]
    """Default few-shot draws that a trial is averaged over."""
    validation: Validation = "held-out"
    """Default images that trials are compared on."""
    objective: Objective = "accuracy"
    """Default of what trials are ranked by."""
    pruner: str = "asha"
    """Default pruner; none if trials are cheap."""
    select: str = "best"
    """Default result: the best trial, or an ensemble if training several models costs little."""


class SpaceError(ValueError):
    """No such space; the message suggests one."""


def declared(
    method: type[Method], ranges: Ranges, trials: int = 40, seeds: tuple[int, ...] = (1, 2, 3)
) -> SpaceEntry:
    """A table of one method. Trials on frozen features last seconds and validating them on all
    labelled images costs little, so by default there are three draws, each validated on the images
    of the others, and no trial is stopped early."""
    build = partial(DeclaredSpace, name=method.name, method=method.name, ranges=ranges)
    if method.input_kind == "images":
        return SpaceEntry(build, trials, seeds)
    entry = SpaceEntry(build, trials, seeds, "pooled", "likelihood")
    if len(seeds) == 1:  # trials that are not that cheap
        return entry
    return replace(entry, pruner="none", select="best" if method.changes_backbone else "ensemble")


def _masks(build: Callable[[TaskFacts], Space], trials: int) -> SpaceEntry:
    """Masks: bits flip late in training, so that early values do not show which trial ends best,
    and no trial is stopped early."""
    return SpaceEntry(build, trials, (1,), objective="likelihood", pruner="none")


def _pipeline(names: tuple[str, ...], trials: int, seeds: tuple[int, ...]) -> SpaceEntry:
    def build(facts: TaskFacts) -> PipelineSpace:
        stages: list[DeclaredSpace] = []
        for name in names:
            after = tuple(config.method for stage in stages for config in stage.paper.stages)
            own = replace(facts, after=(*facts.after, *after))
            space = SPACES[name].build(own)
            assert isinstance(space, DeclaredSpace), "only tables can be stages"
            stages.append(space)
        return PipelineSpace(tuple(stages))

    return SpaceEntry(build, trials, seeds)


# On cached features. A linear probe and Tip-Adapter beside them make the result worse
# (docs/selection.md).
_AUTO = ("taskres", "clap", "gda", "lp-plus-plus", "tip-adapter-f")


def _auto(facts: TaskFacts) -> MethodChoice:
    spaces = [SPACES[name].build(facts) for name in _AUTO]
    return MethodChoice("auto", tuple(s for s in spaces if isinstance(s, DeclaredSpace)))


_OWN: dict[str, SpaceEntry] = {
    "auto": SpaceEntry(_auto, 40, (1, 2, 3), "pooled", "likelihood", "none", "ensemble"),
    # Trained on images: seconds to hours per trial.
    "rmt": _masks(rmt_space, 16),
    "rmt-budget": _masks(partial(rmt_space, name="rmt-budget"), 16),
    "rmt-variants": _masks(variants_space, 24),
    "rmt-text": _masks(partial(variants_space, method="rmt-text"), 24),
    "rmt-both": _masks(partial(variants_space, method="rmt-both"), 24),
    "fine-tuning": declared(METHODS["fine-tuning"], FINE_TUNING, trials=16, seeds=(1,)),
    "clip-lora": SpaceEntry(clip_lora_space, trials=16, seeds=(1,)),
    "vpt": declared(METHODS["vpt"], VPT, trials=16, seeds=(1,)),
    "maple": declared(METHODS["maple"], MAPLE, trials=16, seeds=(1,)),
    "plot": declared(METHODS["plot"], PLOT, trials=16, seeds=(1,)),
    "promptsrc": declared(METHODS["promptsrc"], PROMPT_SRC, trials=16, seeds=(1,)),
    "taskres": declared(METHODS["taskres"], TASKRES),
    "text-adapter": declared(METHODS["text-adapter"], TEXT_ADAPTER),
    "linear-adapter": declared(METHODS["linear-adapter"], LINEAR_ADAPTER),
    "enhanced-base": declared(METHODS["enhanced-base"], ENHANCED_BASE),
    **{name: declared(METHODS[name], ranges) for name, ranges in ON_FEATURES.items()},
    # Each step encodes the prompts of all classes; CoCoOp's once per image.
    **{
        name: declared(METHODS[name], ranges, trials=12 if name == "cocoop" else 24, seeds=(1,))
        for name, ranges in LEARNED_PROMPTS.items()
    },
    # As many trials as the largest stage asks for, and the draws of the most expensive one.
    "rmt+taskres": _pipeline(("rmt", "taskres"), trials=40, seeds=(1,)),
    "rmt+tip-adapter-f": _pipeline(("rmt", "tip-adapter-f"), trials=40, seeds=(1,)),
    "rmt+coop": _pipeline(("rmt", "coop"), trials=24, seeds=(1,)),
    "enhanced-base+taskres": _pipeline(("enhanced-base", "taskres"), trials=40, seeds=(1, 2, 3)),
}

SPACES: Mapping[str, SpaceEntry] = Registry("SPACES", _OWN)
"""Registry name -> space, including those of plugins."""


def find_space(name: str) -> SpaceEntry:
    """A space of the registry, or several joined by `+`, which are the stages of a pipeline.

    Raises `SpaceError`. `TrialConfig.problems` reports stages that cannot follow each other.
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
    trials = max(entry.trials for entry in entries)
    return _pipeline(stages, trials, min((entry.seeds for entry in entries), key=len))
