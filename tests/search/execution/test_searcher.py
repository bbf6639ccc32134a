"""The scheduler's handling of worker deaths, as Tune reports them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial

from search.execution.listeners import SweepListeners
from search.execution.memory import MemoryGate
from search.execution.searcher import StudyScheduler
from search.ledger.ledger import Ledger

DEATH = """Failure # {} (occurred at 2026-11-26_07-49-53)
The actor died unexpectedly before finishing this task.
\tclass_name: Trainable
\tactor_id: {}
\tpid: 23235
"""
SHORTAGE = """Failure # {} (occurred at 2026-11-26_07-49-53)
1 worker(s) were killed due to the node running low on memory.
OOM kill reason: Memory usage 2000000000B exceeded threshold of 1900000000B (95.0% of 2000B limit)
Selected to kill: (pid=1, actual memory used={}GB, worker ID=ab)
]
"""


class Records:
    """The methods of a ledger that a death calls."""

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.waiting: list[int] = []
        self.failed: dict[int, str] = {}
        self.crashes = 0

    def issue(self, number: int) -> None:
        self.live[number] = self.live.get(number, SimpleNamespace(retries=2))

    def record_crash(self, number: int) -> None:
        self.crashes += 1
        self.live[number].retries -= 1

    def requeue(self, number: int) -> None:
        self.waiting.append(number)

    def finish(self, number: int, state: str, reason: str, details: str) -> Any:
        assert state == "FAIL"
        del self.live[number]
        self.failed[number] = reason
        return SimpleNamespace(number=number, train_seconds=0.0)


class World:
    """A scheduler over such a ledger; trials run one at a time, and time stands still."""

    def __init__(self, folder: Path) -> None:
        self.ledger, self.reasons, self.now = Records(), [], 0.0
        self.memory = MemoryGate(1, lambda notice: None, lambda: self.now)
        ledger = cast(Ledger, self.ledger)
        self.scheduler = StudyScheduler(
            ledger, SweepListeners([]), self.memory, self.reasons.append
        )
        self._folder = folder

    def error(self, text: str, number: int = 7, issue: bool = True) -> None:
        """A new attempt of a trial ends with this error."""
        if issue:
            self.ledger.issue(number)
            self.memory.started(number)
        self.now += 1
        file = self._folder / "error.txt"
        if text:
            with open(file, "a", encoding="utf-8") as log:  # as Tune does
                log.write(text)
        trial: Any = SimpleNamespace(
            config={"assignment": {"number": number}}, error_file=str(file) if text else None
        )
        self.scheduler.on_trial_error(None, cast(Trial, trial))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_trial_is_issued_again_until_its_third_death(world: World) -> None:
    world.error(DEATH.format(1, "aa11"))
    world.error(DEATH.format(2, "bb22"))
    assert world.ledger.waiting == [7, 7]
    assert not world.ledger.failed
    world.error(DEATH.format(3, "cc33"))
    assert world.ledger.failed == {
        7: "the worker died: The actor died unexpectedly before finishing this task."
    }


def test_a_death_that_is_reported_twice_counts_once(world: World) -> None:
    """The worker was being handed from trial 7 to trial 8."""
    world.error(DEATH.format(1, "aa11"))
    world.error(DEATH.format(1, "aa11"), number=8)
    assert world.ledger.crashes == 1
    assert world.ledger.waiting == [7, 8]


def test_an_error_that_names_no_worker_counts_each_time(world: World) -> None:
    world.error("Failure # 1\nno such thing\n")
    world.error("")
    assert world.ledger.crashes == 2


def test_a_trial_that_has_ended_is_left_alone(world: World) -> None:
    world.error(DEATH.format(1, "aa11"), issue=False)
    assert (world.ledger.crashes, world.ledger.waiting, world.ledger.failed) == (0, [], {})


def test_a_shortage_of_memory_is_no_crash(world: World) -> None:
    for attempt in range(10):
        world.error(SHORTAGE.format(attempt, 0.1))
    assert world.ledger.crashes == 0
    assert world.ledger.waiting == [7] * 10
    assert not world.ledger.failed
    assert not world.reasons


def test_a_shortage_that_lasts_stops_the_sweep(world: World) -> None:
    world.error(SHORTAGE.format(1, 0.1))
    world.now += 301
    world.error(SHORTAGE.format(2, 0.1))
    (reason,) = world.reasons
    assert "trials found no memory for minutes" in reason
    assert not world.ledger.failed


def test_a_trial_that_fills_the_memory_alone_fails(world: World) -> None:
    for attempt in range(3):
        world.error(SHORTAGE.format(attempt, 1.5))
    assert world.ledger.failed[7].startswith("it does not fit into memory, even alone: 1.9 GiB of")
    assert world.ledger.crashes == 0


def tune_trial(number: int) -> Trial:
    assignment = {"assignment": {"number": number}}
    trial = Trial("anything", config=assignment, evaluated_params=dict(assignment), stub=True)
    trial.run_metadata.update_metric("val/accuracy", 0.5)
    return trial


def test_tune_forgets_ended_trials_only(tmp_path: Path) -> None:
    """It would keep 30 KB of each to the end of the sweep. A late error of one is ignored."""
    world = World(tmp_path)
    ended, running, new = map(tune_trial, range(3))
    world.scheduler.on_trial_add(None, ended)
    world.scheduler.on_trial_add(None, running)
    ended.set_status(Trial.TERMINATED)
    running.set_status(Trial.RUNNING)
    world.scheduler.on_trial_add(None, new)
    for freed in (
        ended.config,
        ended.evaluated_params,
        ended.metric_analysis,
        ended.metric_n_steps,
    ):
        assert freed == {}
    for kept in (running, new):
        assert kept.config == {"assignment": {"number": kept.config["assignment"]["number"]}}
        assert kept.metric_analysis
    world.scheduler.on_trial_error(None, ended)
    assert world.ledger.crashes == 0
