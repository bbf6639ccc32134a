"""Memory shortages: whose fault they are, how many trials run afterwards, when a sweep gives up."""

from __future__ import annotations

import math

import pytest

from search.execution.memory import MemoryGate, Shortage, describe, find_shortage

GIB = 2**30
KILLED = """Failure # 1 (occurred at 2026-11-30_01-32-48)
2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, \
ID: 741f) was 22.5GB used / 23.54GB limit (0.96)
OOM kill reason: Memory usage 24159191040B exceeded threshold of 24012676864B (95.0% of \
25276502016B limit)
Ray killed 2 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Task: job ID=01000000, task name=FewShotTrainable.train, required resources=\
{CPU: 1}, pid=19952, actual memory used=1.25GB, worker ID=ab)
Selected to kill: (Task: job ID=01000000, pid=19953, actual memory used=0.75GB, worker ID=cd)
]
Total non-selected idle workers: 2
Top 10 memory users: PID	MEM(GB)	COMMAND
19540	18.22	/usr/bin/other
"""


def test_ray_reports_who_uses_the_memory() -> None:
    shortage = find_shortage(KILLED)
    assert shortage == Shortage(1.25 * GIB, 24159191040, 24012676864)
    assert not shortage.is_own_fault
    assert describe(shortage) == (
        "22.5 GiB of memory in use, the limit is 22.4 GiB, 1.2 GiB by the trial"
    )


def test_a_report_in_other_words_is_still_a_shortage() -> None:
    shortage = find_shortage("The task was killed due to the node running low on memory.")
    assert shortage is not None
    assert not shortage.is_own_fault
    assert describe(shortage) == "memory ran out"


def test_a_worker_reports_its_own_shortage() -> None:
    text = (
        "MemoryError: The worker ran out of GPU memory: it uses 30 bytes, all processes use 40 of "
        "48 bytes. CUDA out of memory."
    )
    assert find_shortage(text) == Shortage(30, 40, 48, "GPU memory")
    assert find_shortage("The actor died unexpectedly before finishing this task.") is None


OTHERS = Shortage(1 * GIB, 20 * GIB, 19 * GIB)
OWN = Shortage(15 * GIB, 20 * GIB, 19 * GIB)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


def gate(slots: int, said: list[str], clock: Clock) -> MemoryGate:
    return MemoryGate(slots, said.append, clock)


def test_fewer_trials_run_after_a_shortage(said: list[str], clock: Clock) -> None:
    memory = gate(4, said, clock)
    for number in range(4):
        assert memory.may_start(number)
        memory.started(number)
    clock.now += 10
    assert memory.ran_out(3, OTHERS, running=4) == "retry"
    assert not memory.may_start(3)
    assert not memory.may_start(2)  # not at once
    clock.now += 5
    assert memory.may_start(2)
    assert memory.ran_out(2, OTHERS, running=3) == "retry"
    clock.now += 5
    assert not memory.may_start(2)
    assert memory.may_start(1)
    assert len(said) == 1
    assert "fewer trials run at a time" in said[0]


def test_more_trials_run_after_some_calm(said: list[str], clock: Clock) -> None:
    memory = gate(3, said, clock)
    memory.started(0)
    assert memory.ran_out(0, OTHERS, running=3) == "retry"
    clock.now += 10
    assert not memory.may_start(2)
    clock.now += 400
    assert memory.may_start(2)
    assert not memory.may_start(3)


def run_alone_and_run_out(memory: MemoryGate, shortage: Shortage, clock: Clock) -> str:
    while not memory.may_start(0):
        clock.now += 1
    memory.started(0)
    clock.now += 5
    return memory.ran_out(0, shortage, running=1)


def test_workers_that_were_killed_together_were_not_alone(said: list[str], clock: Clock) -> None:
    memory = gate(2, said, clock)
    for number in (0, 1):
        memory.started(number)
    clock.now += 1
    assert memory.ran_out(0, OWN, running=2) == "retry"
    assert memory.ran_out(1, OWN, running=1) == "retry"
    assert [run_alone_and_run_out(memory, OWN, clock) for _ in range(3)] == [
        "retry",
        "retry",
        "fail",
    ]


def test_a_trial_that_is_too_large_fails_alone(said: list[str], clock: Clock) -> None:
    memory = gate(1, said, clock)
    found = [run_alone_and_run_out(memory, OWN, clock) for _ in range(3)]
    assert found == ["retry", "retry", "fail"]


def test_progress_forgives(said: list[str], clock: Clock) -> None:
    memory = gate(1, said, clock)
    for _ in range(10):
        assert run_alone_and_run_out(memory, OWN, clock) == "retry"
        memory.progressed(0)


def test_other_programs_never_fail_a_trial(said: list[str], clock: Clock) -> None:
    """The sweep waits for minutes, less and less often, and stops."""
    memory = gate(1, said, clock)
    start, found, times = clock.now, [], []
    while not found or found[-1] == "retry":
        found.append(run_alone_and_run_out(memory, OTHERS, clock))
        times.append(clock.now - start)
    assert found[-1] == "stop"
    assert set(found[:-1]) == {"retry"}
    assert 300 < times[-1] < 360
    assert len(times) < 20
    assert len(said) == 1


def test_a_shortage_without_figures_never_fails_a_trial(said: list[str], clock: Clock) -> None:
    memory = gate(1, said, clock)
    unknown = Shortage(0, math.nan, math.nan)
    for _ in range(5):
        assert run_alone_and_run_out(memory, unknown, clock) == "retry"
