"""A worker with watched data, in a separate process: `python -m ...sealed_trials FOLDER`.

Prints as JSON what was read, how each trial ended, and whether the seal still holds afterwards.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.trainables.trials import TASK, mask_trial, residual_trial, zero_shot_trial
from trainables.assignment import Assignment, Message
from trainables.data import digits
from trainables.data.base import SealedError, Split, SplitName
from trainables.data.digits import Digits
from trainables.data.registry import DATASETS
from trainables.data.sealed import TestPermit, read_test_split
from trainables.trainable import FewShotTrainable
from trainables.trial import TaskSpec, TrialConfig


@dataclass(frozen=True)
class Watched(Digits):
    """Digits whose test rows explode, and which note everything that is read."""

    read: list[str] = field(default_factory=list)

    def sealed_split(self, permit: TestPermit) -> Split:
        self.read.append("sealed_split")
        return super().sealed_split(permit)

    def _rows(self, name: str) -> Split:
        self.read.append(name)
        if name == "test":
            raise AssertionError("test rows were asked for")
        return super()._rows(name)


@dataclass(frozen=True)
class Curious(Digits):
    """A data set that tries to train on its own test split."""

    recorded: list[str] = field(default_factory=list)

    def split(self, name: SplitName) -> Split:
        return read_test_split(self, lambda: self.recorded.append("recorded"))


@dataclass(frozen=True)
class Forging(Digits):
    """A data set that makes itself a permit."""

    def split(self, name: SplitName) -> Split:
        return self.sealed_split(TestPermit(self.name))


class _TestRowsGone(dict[str, Any]):
    """A partition that counts how often its test rows are looked at."""

    looks = 0

    def __getitem__(self, key: str) -> Any:
        if key == "test":
            type(self).looks += 1
        return super().__getitem__(key)


def main(folder: Path) -> dict[str, Any]:
    """Runs trials of every kind in one warm worker."""
    partition = digits._partition
    digits._partition = lambda *data: _TestRowsGone(partition(*data))  # type: ignore[assignment]
    watched, curious = Watched("digits"), Curious("curious")
    DATASETS._own.update(  # type: ignore[attr-defined]
        {
            "digits": lambda name, root, generate_split: watched,
            "curious": lambda name, root, generate_split: curious,
            "forging": lambda name, root, generate_split: Forging(name),
        }
    )
    worker: FewShotTrainable | None = None
    outcomes: list[str] = []

    def run(trial: TrialConfig, task: TaskSpec) -> None:
        nonlocal worker
        number = len(outcomes)
        job = Assignment(
            number,
            trial.to_dict(),
            task.to_dict(),
            data="",
            folder=str(folder / str(number)),
            device="cpu",
            threads=1,
            in_sequence=False,
            checkpoint_seconds=0.0,
        )
        if worker is None:
            worker = FewShotTrainable({"assignment": asdict(job)})
        else:
            assert worker.reset_config({"assignment": asdict(job)})
        while True:
            message = Message.decode(worker.train()["message"])
            if message.outcome != "running":
                outcomes.append(message.reason or message.outcome)
                return

    for trial in (residual_trial(), mask_trial(2), mask_trial(1, 1.0), zero_shot_trial()):
        run(trial, TASK)
    for name in ("curious", "forging"):
        run(residual_trial(), replace(TASK, datasets=(name,)))
    try:
        read_test_split(watched, lambda: curious.recorded.append("recorded"))
        after = "open"
    except SealedError as error:
        after = str(error)
    return {
        "read": sorted(set(watched.read)),
        "looks": _TestRowsGone.looks,
        "outcomes": outcomes,
        "recorded": curious.recorded,
        "after": after,
    }


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1])), sys.stdout)
