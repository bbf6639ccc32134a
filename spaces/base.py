"""The interface of a search space.

A space turns an Optuna trial into a `TrialConfig`. The same `suggest` samples a new trial, rebuilds
a stored one (`FrozenTrial`), completes one that a crash interrupted, and is tested with a
`FixedTrial`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from trainables.methods.base import Preset, TaskFacts
from trainables.methods.registry import METHODS
from trainables.trial import EpisodeSettings, TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Value = float | int | str | bool
"""Value of a parameter."""


class Space(Protocol):
    """What a sweep needs of a search space. Implementations hold no state but their facts."""

    @property
    def name(self) -> str:
        """Registry name."""

    @property
    def paper(self) -> TrialConfig:
        """The paper's setting: trial 0 of every sweep. It has settings per episode if the paper's
        differ between the task's data sets or numbers of shots."""

    @property
    def paper_parameters(self) -> dict[str, Value]:
        """The parameters for which `suggest` returns `paper`."""

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One point of the space, with the preset `search` unless it is `paper`.

        Each parameter has the name, type and value of a field of the method's configuration, of
        `OptimConfig` or of `TrialConfig`, except `flip_budget`, see `spaces.masks`.
        """


def preset_trial(method: str, preset: Preset, facts: TaskFacts) -> TrialConfig:
    """A method's preset for a task."""
    make = METHODS[method].preset
    general = make(preset, facts)
    each = tuple(
        EpisodeSettings(own.dataset, own.shots, *make(preset, replace(own, after=facts.after)))
        for own in facts.each
    )
    differ = any((own.method_config, own.optim, own.crop_scale) != general for own in each)
    return TrialConfig(method, preset, *general, per_episode=each if differ else ())


def searched(found: TrialConfig, paper: TrialConfig) -> TrialConfig:
    """A suggested configuration as a trial has it: `paper` itself if nothing differs."""
    return paper if found == paper else replace(found, preset="search", per_episode=())
