"""Tasks on a real Ray: order, retries, failures."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import ray

from search.core.placement import Placement
from search.evaluation.tasks import Task, run_tasks, task_options
from tests.shared_ray import end_shared_ray, travelling
from trainables.data.sealed import TRAINING_PROCESS


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    end_shared_ray()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    with travelling(sys.modules[__name__]):
        yield
    ray.shutdown()


def remote(function: object) -> object:
    options = task_options(Placement("cpu", 1, 0, 1), TRAINING_PROCESS)
    return ray.remote(**options)(function)


def die_once(marker: str) -> None:
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)


def note(log: str, word: str) -> None:
    with open(log, "a", encoding="utf-8") as file:
        file.write(word)


def note_late(log: str, word: str) -> None:
    time.sleep(20)
    note(log, word)


def refuse() -> None:
    raise ValueError("no")


def test_what_follows_a_task_comes_before_the_others(tmp_path: Path) -> None:
    write, log = remote(note), str(tmp_path / "log")

    def task(word: str, *after: Task) -> Task:
        def then() -> Sequence[Task]:
            return after

        return Task(partial(write.remote, log, word), then)  # type: ignore[attr-defined]

    run_tasks([task("a", task("b"), task("c")), task("d", task("e"))], 1)
    assert Path(log).read_text() == "abcde"


def test_a_task_whose_worker_dies_is_started_again(tmp_path: Path) -> None:
    ended = []
    start = partial(remote(die_once).remote, str(tmp_path / "marker"))  # type: ignore[attr-defined]
    run_tasks([Task(start, lambda: ended.append(1) or ())], 1)  # type: ignore[func-returns-value]
    assert ended == [1]


def test_a_failure_is_raised_or_handed_over(tmp_path: Path) -> None:
    start = remote(refuse).remote  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no"):
        run_tasks([Task(start)], 1)
    failures: list[Exception] = []
    run_tasks([Task(start, failed=failures.append)], 1)
    assert len(failures) == 1


def test_after_a_failure_no_other_task_goes_on(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    refused, waits, after = (remote(f).remote for f in (refuse, note_late, note))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no"):
        run_tasks([Task(refused), Task(partial(waits, log, "a"))], 2)
    run_tasks([Task(partial(after, log, "b"))], 1)
    assert Path(log).read_text() == "b"


def test_after_two_interrupts_no_task_goes_on(tmp_path: Path) -> None:
    """The second one comes while the first is being handled."""
    log = str(tmp_path / "log")
    waits, after = (remote(f).remote for f in (note_late, note))  # type: ignore[attr-defined]
    again = iter((0.1,))

    def press(delay: float) -> None:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()

    def interrupt(*_: object) -> None:
        for wait in again:
            press(wait)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        press(2)
        with pytest.raises(KeyboardInterrupt):
            run_tasks([Task(partial(waits, log, "a"))], 1)
        run_tasks([Task(partial(after, log, "b"))], 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert Path(log).read_text() == "b"
