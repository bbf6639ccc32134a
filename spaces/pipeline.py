"""Spaces of several stages: `rmt+taskres` searches the masks, and the residual that is trained on
the masked model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from spaces.base import Prefixed, Space
from spaces.declared import DeclaredSpace
from trainables.fields import Value
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class PipelineSpace:
    """The parameters of every stage, prefixed with the stage's method: `rmt.lr`, `taskres.lr`."""

    stages: tuple[DeclaredSpace, ...]
    """In the order of training."""

    @property
    def name(self) -> str:
        """Registry name."""
        return "+".join(stage.name for stage in self.stages)

    @property
    def labels(self) -> tuple[str, ...]:
        """The stages' prefixes: their methods, or their numbers if a method is used twice."""
        methods = tuple(stage.method for stage in self.stages)
        if len(set(methods)) == len(methods):
            return methods
        return tuple(str(number) for number in range(1, len(methods) + 1))

    @property
    def paper(self) -> TrialConfig:
        """The papers' settings of all stages."""
        return _chain([stage.paper for stage in self.stages])

    @property
    def first(self) -> TrialConfig:
        """Trial 0 of all stages."""
        found = _chain([stage.first for stage in self.stages])
        presets = {stage.preset for stage in found.stages}
        return found if len(presets) == 1 else replace(found, preset="search")

    @property
    def first_parameters(self) -> dict[str, Value]:
        """Those of every stage."""
        return self._labelled([stage.first_parameters for stage in self.stages])

    @property
    def first_values(self) -> dict[str, Value]:
        """Those of every stage."""
        return self._labelled([stage.first_values for stage in self.stages])

    @property
    def queue(self) -> tuple[Mapping[str, Value], ...]:
        """Trial 0."""
        return (self.first_parameters,)

    @property
    def grid(self) -> Mapping[str, tuple[Value, ...]]:
        """Empty: the sampler decides."""
        return {}

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One point of every stage's space."""
        found = _chain(
            [
                stage.suggest(Prefixed(trial, label))  # type: ignore[arg-type]
                for label, stage in zip(self.labels, self.stages, strict=True)
            ]
        )
        return found if found == self.first else replace(found, preset="search")

    def _labelled(self, stages: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
        return {
            f"{label}.{name}": value
            for label, values in zip(self.labels, stages, strict=True)
            for name, value in values.items()
        }


@dataclass(frozen=True)
class StartedSpace:
    """A space whose trials all begin with stages that were trained in another sweep."""

    space: Space
    """What is searched."""
    start: TrialConfig
    """The fixed stages before it."""

    @property
    def name(self) -> str:
        """Registry name of the space that is searched."""
        return self.space.name

    @property
    def paper(self) -> TrialConfig:
        """The paper's setting, after the fixed stages."""
        return self.space.paper.after(self.start)

    @property
    def first(self) -> TrialConfig:
        """Trial 0 of the space, after the fixed stages."""
        return self.space.first.after(self.start)

    @property
    def first_parameters(self) -> dict[str, Value]:
        """Those of the space that is searched."""
        return self.space.first_parameters

    @property
    def queue(self) -> tuple[Mapping[str, Value], ...]:
        """That of the space that is searched."""
        return self.space.queue

    @property
    def grid(self) -> Mapping[str, tuple[Value, ...]]:
        """That of the space that is searched."""
        return self.space.grid

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One point of the space that is searched, after the fixed stages."""
        return self.space.suggest(trial).after(self.start)


def _chain(stages: Sequence[TrialConfig]) -> TrialConfig:
    return reduce(lambda before, stage: stage.after(before), stages)
