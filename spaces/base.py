"""The interface of a search space.

A space turns an Optuna trial into a `TrialConfig`. The same `suggest` samples a new trial, rebuilds
a stored one (`FrozenTrial`), completes one that a crash interrupted, and is tested with a
`FixedTrial`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from trainables.fields import Value
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


class Space(Protocol):
    """What a sweep needs of a search space. Implementations hold no state but their facts."""

    @property
    def name(self) -> str:
        """Registry name."""

    @property
    def paper(self) -> TrialConfig:
        """The paper's setting, the baseline of the evaluation. It has settings per episode if the
        paper's differ between the task's data sets or numbers of shots."""

    @property
    def first(self) -> TrialConfig:
        """Trial 0 of every sweep: the paper's setting, unless the user starts from another preset,
        fixes fields or searches other ranges."""

    @property
    def first_parameters(self) -> dict[str, Value]:
        """The parameters for which `suggest` returns `first`."""

    @property
    def queue(self) -> tuple[Mapping[str, Value], ...]:
        """Parameters of the trials that are run before the sampler proposes any."""

    @property
    def grid(self) -> Mapping[str, tuple[Value, ...]]:
        """Parameter -> values, every combination of which is run once; empty if the sampler
        decides."""

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One point of the space, with the preset `search` unless it is `first`.

        Each parameter has the name, type and value of a field of the method's configuration, of
        `OptimConfig` or of `TrialConfig`, except `flip_budget`, see `spaces.masks`.
        """


@dataclass(frozen=True)
class Prefixed:
    """The methods of an Optuna trial that spaces call, with a prefix for the parameters' names."""

    trial: BaseTrial
    """The trial."""
    prefix: str
    """What precedes a name and a dot."""

    def suggest_float(self, name: str, *given: Any, **named: Any) -> float:
        """Suggest a number under the prefix."""
        return self.trial.suggest_float(f"{self.prefix}.{name}", *given, **named)

    def suggest_int(self, name: str, *given: Any, **named: Any) -> int:
        """Suggest an integer under the prefix."""
        return self.trial.suggest_int(f"{self.prefix}.{name}", *given, **named)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggest a choice under the prefix."""
        return self.trial.suggest_categorical(f"{self.prefix}.{name}", choices)


def searched(found: TrialConfig, first: TrialConfig) -> TrialConfig:
    """A suggested configuration as a trial has it: `first` itself if nothing differs."""
    return first if found == first else replace(found, preset="search", per_episode=())
