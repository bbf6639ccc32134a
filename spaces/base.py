"""The interface of a search space.

A space turns an Optuna trial into a `TrialConfig`. The same `suggest` samples a new trial, rebuilds
a stored one (`FrozenTrial`), completes one that a crash interrupted, and is tested with a
`FixedTrial`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from trainables.trial import TrialConfig

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


def searched(found: TrialConfig, paper: TrialConfig) -> TrialConfig:
    """A suggested configuration as a trial has it: `paper` itself if nothing differs."""
    return paper if found == paper else replace(found, preset="search", per_episode=())
