"""What a sweep starts from: the winner of another one, with which all its trials begin."""

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
    """Its id, which a folder that is moved keeps."""
    trial: int
    """Number of the winner."""
    stage: TrialConfig
    """The winner's configuration, as fixed stages."""
    task: TaskSpec
    """What it was found on."""
    fingerprints: Mapping[str, str]
    """Of the backbone and the data that it was found on."""

    def identity(self) -> dict[str, Any]:
        """What may not change when a sweep is resumed."""
        return {"sweep": self.sweep, "trial": self.trial, "config": self.stage.fingerprint()}

    def problems(self, task: TaskSpec) -> list[str]:
        """How `task` differs from the one that it was found on. Draws may: each trains its own; and
        so may whether unreadable images are left out."""
        return [
            f"--init-from: '{shown(self.location)}' has {f.name} {_shown(theirs)}, and this sweep "
            f"{_shown(ours)}: leave that option away, or start from a sweep on the same task."
            for f in fields(TaskSpec)
            if f.name not in ("seeds", "skip_unreadable")
            and (theirs := getattr(self.task, f.name)) != (ours := getattr(task, f.name))
        ]

    def differences(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Whether backbone and data are still those that it was found on."""
        return [
            f"--init-from: '{shown(self.location)}' was found with another "
            f"{name.replace('.', ' of ')} ({theirs[:12]}, now "
            f"{fingerprints.get(name, 'none')[:12]}): restore it, or search that sweep again."
            for name, theirs in self.fingerprints.items()
            if name != "draws" and fingerprints.get(name) != theirs
        ]


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
