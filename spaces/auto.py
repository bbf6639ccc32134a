"""The space `auto`: the method is a parameter, and each method has its own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spaces.base import Prefixed
from spaces.declared import DeclaredSpace
from trainables.fields import Value
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

METHOD = "method"
"""Name of the parameter that chooses the method."""


@dataclass(frozen=True)
class MethodChoice:
    """Several spaces, of which each trial takes a point of one.

    Parameters are `method`, and those of the chosen space, prefixed with its name: `taskres.lr`.
    """

    name: str
    """Registry name."""
    spaces: tuple[DeclaredSpace, ...]
    """The spaces of all methods; the first one has the baseline and trial 0."""

    @property
    def paper(self) -> TrialConfig:
        """The paper's setting of the first method."""
        return self.spaces[0].paper

    @property
    def first(self) -> TrialConfig:
        """Trial 0 of the first method."""
        return self.spaces[0].first

    @property
    def first_parameters(self) -> dict[str, Value]:
        """Those of trial 0."""
        return _parameters(self.spaces[0])

    @property
    def queue(self) -> tuple[Mapping[str, Value], ...]:
        """The paper's setting of every method: each is tried before the sampler prefers one."""
        return tuple(_parameters(space) for space in self.spaces)

    @property
    def grid(self) -> Mapping[str, tuple[Value, ...]]:
        """Empty: the sampler decides."""
        return {}

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """A method, and a point of its space."""
        spaces = {space.name: space for space in self.spaces}
        chosen = str(trial.suggest_categorical(METHOD, list(spaces)))
        return spaces[chosen].suggest(Prefixed(trial, chosen))  # type: ignore[arg-type]


def _parameters(space: DeclaredSpace) -> dict[str, Value]:
    own = {f"{space.name}.{name}": value for name, value in space.first_parameters.items()}
    return {METHOD: space.name, **own}
