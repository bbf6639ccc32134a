"""The record of what a sweep's result consists of. Reading it loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, MinLen

from search.core.results import Result
from trainables.core.records import Count
from trainables.trial import Member, TrialConfig


@dataclass(frozen=True)
class Share:
    """A member of a result."""

    trial: Count | None
    """Number of the trial; None for the zero-shot model."""
    weight: Annotated[float, Gt(0)]
    """Coefficient of its log-probabilities."""


@dataclass(frozen=True)
class Selection:
    """The result of a sweep: one model, or an ensemble whose weighted log-probabilities are
    added."""

    trial: Count
    """The best single trial, or the one that the user has chosen."""
    members: Annotated[tuple[Share, ...], MinLen(1)]
    """The models, the largest weight first."""
    rule: str
    """Name of the rule, see `rules.py`; `best` for the best trial, `chosen` for a trial that the
    user has chosen."""
    note: str = ""
    """A sentence about the choice, or empty."""
    inputs: str = ""
    """Digest of what it was computed from."""
    format: Literal[1] = 1
    """Version of this record."""

    @property
    def is_single(self) -> bool:
        """Whether the result is the trial alone."""
        return len(self.members) == 1 and self.members[0].trial == self.trial

    @property
    def sentence(self) -> str:
        """What the result is, if it is not simply the trial; else empty."""
        if self.is_single:
            return self.note
        names = ["zero-shot" if m.trial is None else f"trial {m.trial}" for m in self.members]
        if len(names) == 1:
            return f"The result is the model {names[0]}. {self.note}".strip()
        total = sum(member.weight for member in self.members)
        shares = (
            f"{name} ({100 * member.weight / total:.0f} %)"
            for name, member in zip(names, self.members, strict=True)
        )
        return (
            f"The result is an ensemble that adds weighted log-probabilities: {', '.join(shares)}."
        )

    def config(self, results: Mapping[int, Result], zero_shot: TrialConfig) -> TrialConfig:
        """The configuration that is trained for this result."""
        members = tuple(
            Member(
                share.weight,
                zero_shot
                if share.trial is None
                else TrialConfig.from_dict(results[share.trial].config),
            )
            for share in self.members
        )
        return members[0].config if len(members) == 1 else TrialConfig.ensemble(members)
