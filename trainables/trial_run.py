"""One trial without Ray: the training of every episode of its task, in report steps.

A trial has at most eight report steps. After each it can report, be stopped, saved and continued.
Trials with different numbers of epochs are compared at the same step, so at the same share of their
budget. Consecutive stages have equally many steps, so trials are compared in the same stage.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

from torch import Tensor

from trainables.core.storage import Storage
from trainables.core.tensor_file import (
    numbered,
    read_checked,
    split_numbered,
    write_checked,
    write_tensors,
)
from trainables.encoded_task import EncodedTask
from trainables.folds import FoldedTraining
from trainables.predictions import write_predictions
from trainables.repeated_training import share_repeated
from trainables.report import CHECKPOINT, METRICS, Report, step_ends
from trainables.stack import Lockstep
from trainables.stages import open_training
from trainables.trainer import check_finite
from trainables.training import Training
from trainables.trial import TaskSpec, TrialConfig

_FORMAT = {"format": "few-shot-checkpoint", "format_version": "2"}


class CheckpointError(ValueError):
    """A checkpoint cannot be continued. The message gives the rule, the value and the fix."""


class TrialRun:
    """The training of all episodes of a trial: its data sets, shots and few-shot draws.

    In parallel (the default) every step advances every episode by an eighth of its epochs, and the
    reported value is the mean over episodes. In sequence, a step trains one whole episode and
    reports its value, as a paired test over episodes needs.
    """

    def __init__(
        self,
        config: TrialConfig,
        task: TaskSpec,
        encoded_task: EncodedTask,
        in_sequence: bool = False,
    ) -> None:
        self.config, self.task, self.in_sequence = config, task, in_sequence
        self._encoded = encoded_task
        pool = task.episodes if task.validation == "pooled" else ()
        episodes: list[Training] = [
            FoldedTraining(config.for_episode(episode), encoded_task, episode)
            if task.validation == "folds"
            else open_training(config, encoded_task, episode, pool)
            for episode in task.episodes
        ]
        self.episodes = episodes if in_sequence else share_repeated(episodes)
        self._lockstep = Lockstep()
        self.step = 0
        self._judged: list[dict[str, float]] = []
        self._rows: list[dict[str, float]] = []
        self._reported = 0

    @property
    def steps(self) -> int:
        """Number of report steps."""
        return len(self.episodes) if self.in_sequence else len(self._ends)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    @property
    def is_idle(self) -> bool:
        """Whether training provably changes nothing, so that every step costs nothing."""
        return all(episode.is_idle for episode in self.episodes)

    def forecast(self) -> dict[str, float]:
        """Return what is known before training, e.g. the flip budget: means over episodes; raises
        `NonFiniteError`."""
        found = _mean([episode.forecast() for episode in self.episodes])
        check_finite(found, 0)
        return found

    def warnings(self) -> list[str]:
        """Return what the user should know before training."""
        return self.episodes[0].warnings()

    def advance(self) -> Report:
        """Train the next step, if one is left, and report; raises `NonFiniteError`."""
        if not self.finished:
            rows = self._train_episode() if self.in_sequence else self._train_in_parallel()
            for row in rows:  # also those of methods in closed form, and of folds
                check_finite(row, int(row["epoch"]))
            self.step += 1
            self._rows += rows
            self._judged.append({name: rows[-1][name] for name in METRICS.values()})
        return self.report()

    def report(self) -> Report:
        """Return the report for the latest step; at least one must be done."""
        latest = {k: v for k, v in self._rows[-1].items() if k not in ("epoch", "time")}
        if self.in_sequence:
            latest |= self._mean(self._judged)
        values = tuple(row[METRICS[self.task.objective]] for row in self._judged)
        news, self._reported = self._rows[self._reported :], len(self._rows)
        trained = not self.is_idle
        return Report(self.step, values, tuple(news), self.finished, latest, trained)

    def _train_episode(self) -> list[dict[str, float]]:
        episode = self.episodes[self.step]
        first = sum(max(1, done.epochs) for done in self.episodes[: self.step])
        return [
            _stamped(episode.run_epoch(self._every_epoch or epoch == episode.epochs), first + epoch)
            for epoch in range(1, episode.epochs + 1)
        ] or [_stamped(episode.validate(), first)]

    def _train_in_parallel(self) -> list[dict[str, float]]:
        begun, last = self._ends[self.step - 1] if self.step else 0, self._ends[self.step]
        return [
            _stamped(self._mean(self._train_until(end, last)), end)
            for end in range(begun + 1, last + 1)
        ] or [_stamped(self._mean([episode.validate() for episode in self.episodes]), 0)]

    def _mean(self, rows: Sequence[dict[str, float]]) -> dict[str, float]:
        """Means over the episodes; that of the accuracy is exact."""
        if "val/accuracy" not in rows[0]:
            return _mean(rows)
        values = [row["val/accuracy"] for row in rows]
        return _mean(rows) | {"val/accuracy": mean_accuracy(values, self._val_images)}

    def _train_until(self, epoch: int, last: int) -> list[dict[str, float]]:
        """Train all episodes until the trial's `epoch` of a step that ends with `last`; return the
        metrics of the last epoch of each. Own validation images are few, and checked in every
        epoch."""
        validate = self._every_epoch or epoch == last
        targets = [self._epochs_of(episode, epoch) for episode in self.episodes]
        rows: list[dict[str, float]] = [{} for _ in targets]
        due = list(range(len(rows)))
        while due:
            trained = self._lockstep.run_epoch([self.episodes[i] for i in due], validate)
            for number, row in zip(due, trained, strict=True):
                rows[number] = row
            due = [i for i in due if self.episodes[i].epoch < targets[i]]
        return rows

    @property
    def _every_epoch(self) -> bool:
        return self.task.validation == "held-out"

    @property
    def _val_images(self) -> list[int]:
        """Number of validation images per episode."""
        return [len(episode.val.labels) for episode in self.episodes]

    def _epochs_of(self, training: Training, epoch: int) -> int:
        """The epochs that an episode has trained when the trial has trained `epoch`.

        They differ only for settings per episode: the episode with the fewest epochs sets the
        pace in every stage, and the others train the same share of theirs.
        """
        target = 0
        for own, pace in zip(training.config.stages, self.config.stages, strict=True):
            if not own.fixed and pace.epochs:
                target += math.ceil(min(epoch, pace.epochs) * own.epochs / pace.epochs)
                epoch = max(0, epoch - pace.epochs)
        return target

    @cached_property
    def _ends(self) -> list[int]:
        return step_ends(self.config)

    def save(self, folder: Storage, name: str = CHECKPOINT) -> None:
        """Write everything that is needed to continue, in one safetensors file.

        Its metadata contains the configuration's fingerprint and a checksum.
        """
        tensors, episodes = numbered(episode.state() for episode in self.episodes)
        plain = {
            "step": self.step,
            "judged": self._judged,
            "rows": self._rows,
            "episodes": episodes,
        }
        metadata = _FORMAT | {"run": json.dumps(plain), "config": self._identity()}
        metadata["frame"] = self._frame()
        write_checked(folder, name, tensors, metadata)

    def load(self, folder: Storage, name: str = CHECKPOINT) -> bool:
        """Continue from `save`. Return False and change nothing if the file is missing, damaged or
        of another configuration. Raises `StorageError`."""
        found = read_checked(folder, name)
        if found is None or found[1].get("config") != self._identity():
            return False
        self._continue(*found)
        return True

    def load_changed(self, folder: Storage, name: str = CHECKPOINT) -> None:
        """Continue from `save` of a trial whose settings may have differed, as population-based
        training changes them. Task, methods, epochs and optimisers must be the same, and so must
        the shapes of all tensors. Raises `CheckpointError`, `StorageError`."""
        found = read_checked(folder, name)
        if found is None:
            raise CheckpointError(
                f"The checkpoint must be a whole '{name}', and it is missing or damaged in "
                f"'{folder.location}'. Start the trial again."
            )
        if found[1].get("frame") != self._frame():
            raise CheckpointError(
                "A checkpoint continues only with the task, methods, epochs and optimisers that it "
                f"was trained with ({found[1].get('frame')}), got {self._frame()}. Change other "
                "settings, e.g. lr."
            )
        try:
            self._continue(*found)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                "A checkpoint continues only with tensors of the same shapes, and these settings "
                f"change them ({str(error).splitlines()[0]}). Change other settings, e.g. lr."
            ) from error

    def _continue(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self._lockstep = Lockstep()  # the stacks of what is replaced
        plain: dict[str, Any] = json.loads(metadata["run"])
        stored = split_numbered(tensors, plain["episodes"])
        for episode, state in zip(self.episodes, stored, strict=True):
            episode.load_state(*state)
        self.step, self._judged, self._rows = plain["step"], plain["judged"], plain["rows"]
        self._reported = 0

    def save_artifacts(self, folder: Storage) -> list[str]:
        """Write what was learned so far, `artifact.safetensors` or one file per episode if there
        are several, and return the names. In sequence, only trained episodes have one."""
        names = []
        for episode in self.episodes[: self.step] if self.in_sequence else self.episodes:
            tensors, metadata = episode.artifact()
            suffix = f"-{self.task.label(episode.episode)}" if len(self.episodes) > 1 else ""
            names.append(f"artifact{suffix}.safetensors")
            write_tensors(folder, names[-1], tensors, metadata)
        return names

    def save_predictions(self, folder: Storage) -> None:
        """Write the validation predictions of the finished trial, see `predictions.py`."""
        write_predictions(folder, self.episodes, self.task, self._encoded)

    def _identity(self) -> str:
        return f"{self.config.fingerprint()}/{self.task}/{self._mode}"

    def _frame(self) -> str:
        """Everything that a checkpoint cannot be continued without."""
        stages = [
            f"{stage.method} {own.epochs} epochs {own.optimiser}"
            for stage in self.config.stages
            for own in (stage.optim, *(each.optim for each in stage.per_episode))
        ]
        return f"{', '.join(stages)}, {self.task}, {self._mode}"

    @property
    def _mode(self) -> str:
        return "sequence" if self.in_sequence else "side-by-side"


def mean_accuracy(values: Sequence[float], images: Sequence[int]) -> float:
    """The mean of accuracies (fractions of so many images), rounded once.

    The sum of rounded numbers depends on their order: 22 + 23 + 23 and 22 + 22 + 24 correct of
    3 x 25 would have different means. Equal counts have equal means here, so that they tie.
    """
    exact = [
        Fraction(round(value * count), count) for value, count in zip(values, images, strict=False)
    ]
    return float(sum(exact) / len(exact))


def _stamped(row: dict[str, float], epoch: int) -> dict[str, float]:
    return row | {"epoch": float(epoch), "time": time.time()}


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of what all rows have: an idle episode has no training loss."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}
