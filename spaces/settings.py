"""What a user changes in a space: its preset, fixed fields, ranges, a grid, the first trials.

    --preset clean --set leak=0.3 --range lr=1e-5:1e-2:log --choice batch_size=8,16
    --grid threshold=0.001,0.003 --grid leak=0,1

Names are the fields of the method's configuration, of `OptimConfig`, and `crop_scale`. In a space
of several stages they are `rmt.leak`, or `leak` if only one stage has it. They are applied by
`spaces/adjust.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trainables.fields import Value

Values = Mapping[str, tuple[Value, ...]]


class SettingsError(ValueError):
    """Settings that do not fit their space: one line per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Settings:
    """What the user fixes and searches, by the names of fields."""

    preset: str = "paper"
    """Preset that the search starts from: paper, reference (the authors' code) or clean (ours).
    What is neither set nor searched keeps its value, and trial 0 is the preset."""
    set: Mapping[str, Value] = field(default_factory=dict)
    """Fix a field, e.g. leak=0.3; python -m search.spaces NAME lists the fields. In a space of
    several stages: rmt.leak=0.3. Repeatable."""
    range: Mapping[str, str] = field(default_factory=dict)
    """Search an interval: epochs=10:50, lr=1e-5:1e-2:log, epochs=10:50:5 (a step). Repeatable."""
    choice: Values = field(default_factory=dict)
    """Search some values: batch_size=8,16,32 (separated by | if a value has commas). Repeatable."""
    grid: Values = field(default_factory=dict)
    """Run every combination of such values once; nothing else is searched. Repeatable."""
    enqueue: tuple[Mapping[str, Value], ...] = ()
    """Run these configurations after trial 0: a file of parameters (JSON: a list of objects; CSV: a
    column each), or a sweep's name, whose best 5 trials are run; NAME:10 for its best 10."""

    def identity(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["enqueue"] = list(map(dict, self.enqueue))
        return {name: value for name, value in plain.items() if value and value != "paper"}

    @property
    def combinations(self) -> int:
        """Number of trials of the grid."""
        return math.prod(map(len, self.grid.values()))
