"""A plugin: a space whose trials cost nothing, because its method learns nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from spaces.registry import SpaceEntry
from trainables.presets import preset_trial

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from trainables.methods.base import TaskFacts
    from trainables.trial import TrialConfig


@dataclass(frozen=True)
class NoOpSpace:
    """A space with one parameter without effect."""

    setting: TaskFacts
    name = "no-op"
    first_parameters: ClassVar[dict[str, float]] = {"x": 0.5}
    queue = (first_parameters,)
    grid: ClassVar[dict[str, Any]] = {}

    @property
    def paper(self) -> TrialConfig:
        """The zero-shot model."""
        return preset_trial("zero-shot", "paper", self.setting)

    first = paper

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """The zero-shot model, for every value."""
        trial.suggest_float("x", 0.0, 1.0)
        return self.paper


SPACES = {"no-op": SpaceEntry(NoOpSpace, trials=1, seeds=(1,))}
