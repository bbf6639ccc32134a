"""A trial that sleeps in place of training; its process loads no torch."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from ray import tune

from trainables.assignment import Assignment, Message
from trainables.report import REPORTS_PER_TRIAL, Report

SHORTEST, LONGEST = 30.0, 90.0
"""Seconds that a trial sleeps, before they are scaled down."""


def seconds(number: int) -> float:
    """How long a trial sleeps, before that is scaled down."""
    return random.Random(number).uniform(SHORTEST, LONGEST)


class SleepingTrial(tune.Trainable):
    """Sleeps between its reports, and sends the messages that `FewShotTrainable` sends."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trial of this process."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial of this process."""
        self._job, self._done = Assignment(**new_config["assignment"]), 0
        # The data folder is not used otherwise: it carries the factor.
        whole = seconds(self._job.number) / float(self._job.data)
        self._seconds = whole / REPORTS_PER_TRIAL
        self._values: list[float] = []
        return True

    def step(self) -> dict[str, Any]:
        """Sleep for an eighth of the trial's time and report an epoch."""
        start = time.monotonic()
        time.sleep(self._seconds)
        self._done += 1
        self._values.append(_accuracy(self._job, self._done))
        metrics = {"val/accuracy": self._values[-1], "val/loss": 1 - self._values[-1]}
        row = {"epoch": self._done, "time": time.time(), **metrics}
        finished = self._done == REPORTS_PER_TRIAL
        report = Report(self._done, tuple(self._values), (row,), finished, metrics)
        outcome = "finished" if finished else "running"
        message = Message(self._job.number, outcome, report, time.monotonic() - start)
        return {"message": message.encode(), "done": finished}


def _accuracy(job: Assignment, step: int) -> float:
    """A learning curve whose end depends on the learning rate, with noise."""
    distance = abs(math.log10(job.trial["optim"]["lr"]) + 3)
    noise = random.Random(f"{job.number}/{step}").gauss(0, 0.02)
    return min(1.0, max(0.0, 0.9 - 0.1 * distance - 0.4 / (step + 1) + noise))
