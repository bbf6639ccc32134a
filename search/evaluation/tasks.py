"""Runs Ray tasks that restart if their worker dies and that can have subsequent tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from search.core.placement import Placement

_ATTEMPTS = 4  # per task, if its worker dies
_SETTLED = 0.5  # seconds after which a task is submitted, and one that was ending has ended


def nothing() -> Sequence[Task]:
    """Return no subsequent tasks."""
    return ()


@dataclass(frozen=True)
class Task:
    """One call of a remote function."""

    start: Callable[[], Any]
    """Submits the call and returns Ray's reference."""
    then: Callable[[], Sequence[Task]] = nothing
    """Called after success; returns subsequent tasks, which run before all others."""
    failed: Callable[[Exception], None] | None = None
    """Called with an exception of the task itself; if None, the exception is raised."""


def run_tasks(tasks: Iterable[Task], window: int) -> None:
    """Run tasks, at most `window` at a time; a task restarts if its worker dies. If one fails, or
    the user interrupts, the others are cancelled. Raises `RayError`."""
    running: dict[Any, tuple[Task, int]] = {}
    try:
        _run_tasks(tasks, window, running)
    finally:
        cancel(running)


def cancel(references: Iterable[Any]) -> None:
    """End tasks that still wait or run: a Ray that is not the sweep's own would finish them, and
    they would write into the folder of a sweep that has ended.

    Ray aborts this process if it cancels a task that is just being submitted or just ending (a
    check of its task manager fails). This makes it unlikely: they get time to be one or the other.
    """
    tasks = list(references)
    try:
        if tasks:
            _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=_SETTLED)
    finally:  # also after a second Ctrl-C
        for reference in tasks:
            ray.cancel(reference, force=True)


def _run_tasks(tasks: Iterable[Task], window: int, running: dict[Any, tuple[Task, int]]) -> None:
    waiting = [(task, 1) for task in tasks][::-1]
    while waiting or running:
        while waiting and len(running) < window:
            task, attempt = waiting.pop()
            running[task.start()] = task, attempt
        (reference, *_), _ = ray.wait(list(running))
        task, attempt = running.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if task.failed is None:
                raise
            task.failed(error)
            continue
        except ray.exceptions.RayError:
            if attempt == _ATTEMPTS:
                raise
            waiting.append((task, attempt + 1))
            continue
        waiting += [(following, 1) for following in task.then()][::-1]


def task_options(placement: Placement, process: dict[str, str]) -> dict[str, Any]:
    """Return Ray's options of a task.

    Tasks, unlike actors, continue on the remaining machines if a cluster loses one. They run in
    separate processes per role, because Ray reuses a process only for tasks with the same
    environment. Ray does not restart them, because a repeated read must be recorded first.
    """
    return {
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
        "max_retries": 0,
        "runtime_env": {"env_vars": process},
    }
