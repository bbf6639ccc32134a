"""Runs the trials of a sweep with Ray Tune, until there are enough or the sweep is stopped."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.stopper import Stopper

from search.core.placement import Placement
from search.core.problems import StoppedError
from search.execution.listeners import SweepListener
from search.execution.memory import MemoryGate
from search.execution.searcher import Assign, StudyScheduler, StudySearcher
from search.ledger.ledger import Ledger
from trainables.core.storage import StorageError
from trainables.trainable import FewShotTrainable

logger = logging.getLogger(__name__)

_TURN = 0.0005  # seconds


class StopSwitch(Stopper):
    """Stops a sweep after its time budget, on a signal, or when it cannot continue."""

    def __init__(self, seconds: float | None) -> None:
        """`seconds` is the time budget, if any."""
        self._seconds = seconds
        self._deadline: float | None = None
        self._at_once = False
        self.interrupted = False
        """Whether a signal has arrived."""
        self.reason = ""
        """Why the sweep cannot continue, if so."""

    def give_up(self, reason: str) -> None:
        """Start no further step. The first reason is kept."""
        self.reason = self.reason or reason

    def start_clock(self) -> None:
        """Start the time budget: with the first trial, not with the start of Ray."""
        if self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: single trials are stopped by the scheduler."""
        return False

    def stop_all(self) -> bool:
        """Return whether no further step of any trial may start."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        return self.interrupted or late or bool(self.reason)

    def interrupt_at_once(self) -> None:
        """From now on a signal raises `KeyboardInterrupt`; raises it if one has arrived already."""
        self._at_once = True
        if self.interrupted:
            raise KeyboardInterrupt

    def interrupt_between_steps(self) -> None:
        """From now on the first signal lets trials finish their step."""
        self._at_once = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While open, the first SIGINT or SIGTERM throws the switch, and a second one raises
        `KeyboardInterrupt`. Only the main thread can handle signals; in others this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def throw(signum: int, frame: FrameType | None) -> None:
            is_second, self.interrupted = self.interrupted, True
            if is_second or self._at_once:
                raise KeyboardInterrupt

        previous = {number: signal.signal(number, throw) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_trials(
    ledger: Ledger,
    assign: Assign,
    trials: int,
    placement: Placement,
    listener: SweepListener,
    stop: StopSwitch,
    folder: Path,
    say: Callable[[str], None],
    *,
    idle: Callable[[], object] = lambda: None,
    trainable: type[tune.Trainable] = FewShotTrainable,
) -> None:
    """Let Ray run what the ledger issues until it holds `trials` or `stop` is thrown.

    Tune keeps its own files in `folder`; nothing reads them. `say` prints a notice. `idle` is
    called whenever a slot is free while the last trials run. `trainable` runs the assignments and
    sends the messages.
    Raises whatever a hook raised: `StoppedError` or `StorageError`.
    """
    memory = MemoryGate(placement.slots, say)
    searcher = StudySearcher(ledger, assign, trials, listener, memory, stop.stop_all, idle)
    scheduler = StudyScheduler(ledger, listener, memory, stop.give_up)
    resources = {"cpu": placement.cpus, "gpu": placement.gpus}
    workers = tune.with_resources(trainable, resources)
    stop.start_clock()
    with _frequent_turns():
        for turn in itertools.count():  # again if the last trial lost its worker or does not count
            _fit(workers, searcher, scheduler, placement.slots, stop, folder / str(turn))
            if stop.stop_all() or not searcher.has_more:
                return


@contextlib.contextmanager
def _frequent_turns() -> Iterator[None]:
    """While open, Tune's loop need not wait five milliseconds for MLflow's thread whenever a
    message wakes it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _fit(
    workers: type[tune.Trainable],
    searcher: StudySearcher,
    scheduler: StudyScheduler,
    slots: int,
    stop: StopSwitch,
    folder: Path,
) -> None:
    tuner = tune.Tuner(
        workers,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            # With this number Ray starts that many workers at once. Otherwise it starts them one by
            # one, a short trial's worker takes over the next trial while that trial's own worker is
            # still starting, and all trials run in one worker.
            max_concurrent_trials=slots,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            name="sweep",
            stop=stop,
            # Tune never restarts a trial: the ledger issues it again.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        if cause := _raised_by_hook(error):
            raise cause from None
        # Tune may stop a worker twice if it was still starting. All results are on disk, and what
        # the workers have trained since their last checkpoint is trained again.
        if not stop.stop_all():
            raise
        logger.debug("Tune failed while it stopped", exc_info=error)


def _raised_by_hook(error: BaseException) -> BaseException | None:
    """Return the error of one of our hooks, which Tune hides behind its own."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, StoppedError | StorageError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return None
