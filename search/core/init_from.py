"""The start of a sweep: the winner of another sweep, with which all its trials begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from trainables.core.credentials import shown
from trainables.trial import TaskSpec, TrialConfig


@dataclass(frozen=True)
class Start:
    """The winner of a finished sweep."""

    location: str
    """Folder of that sweep."""
    sweep: str
    """Id of that sweep, which does not change if its folder is moved."""
    trial: int
    """Number of the winner."""
    stage: TrialConfig
    """The winner's configuration, as fixed stages."""
    task: TaskSpec
    """Task of that sweep."""
    fingerprints: Mapping[str, str]
    """Fingerprints of that sweep's backbone and data."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that must not change when a sweep is resumed."""
        return {"sweep": self.sweep, "trial": self.trial, "config": self.stage.fingerprint()}

    def problems(self, task: TaskSpec) -> list[str]:
        """Return how `task` differs from the task of that sweep.

        Seeds, the handling of unreadable images and the validation may differ.
        """
        return [
            f"--init-from needs a sweep on the same task, and '{shown(self.location)}' has "
            f"{f.name} {_shown(theirs)}, got {_shown(ours)}. Omit the option, or use another sweep."
            for f in fields(TaskSpec)
            if f.name not in ("seeds", "skip_unreadable", "validation", "objective")
            and (theirs := getattr(self.task, f.name)) != (ours := getattr(task, f.name))
        ]

    def differences(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Return how backbone and data have changed since that sweep."""
        return [
            f"--init-from: '{shown(self.location)}' was searched with another "
            f"{name.replace('.', ' of ')} ({theirs[:12]}, now "
            f"{fingerprints.get(name, 'none')[:12]}). Restore it, or run that sweep again."
            for name, theirs in self.fingerprints.items()
            if name != "draws" and fingerprints.get(name) != theirs
        ]


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
