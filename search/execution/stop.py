"""How a sweep is ended before its last trial."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ray.tune.stopper import Stopper


class StopSwitch(Stopper):
    """Ends a sweep gracefully: after its time budget, or when somebody asks it to stop."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self.interrupted = False
        self.at_once = False
        """Whether the next signal shall raise `KeyboardInterrupt`, not wait for a part to end."""
        self.reason = ""
        """Why the sweep cannot go on."""

    def give_up(self, reason: str) -> None:
        """Let no further part begin, for a reason that is no trial's fault."""
        self.reason = self.reason or reason

    def start_clock(self) -> None:
        """The time budget begins here: with the first trial, not with the start of Ray."""
        if self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether no further part of any trial shall begin."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        return self.interrupted or late or bool(self.reason)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While open, Ctrl-C and SIGTERM throw the switch; a second one stops at once."""

        def throw(signum: int, frame: FrameType | None) -> None:
            if self.interrupted or self.at_once:
                raise KeyboardInterrupt
            self.interrupted = True

        previous = {number: signal.signal(number, throw) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
