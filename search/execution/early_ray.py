"""Starts a sweep's private Ray in a thread, beside the checks that precede the sweep."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console


class EarlyRay:
    """A private Ray that may have been started before it is used; it ends with `with`.

    Linux ends Ray's processes together with the thread that has started them, so one thread opens
    the session and stays until it closes it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._ready, self._over = threading.Event(), threading.Event()
        self._folder = Path()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def started(self) -> bool:
        """Whether the start has begun, and the session has not ended."""
        return self._thread is not None

    def start(self) -> None:
        """Start Ray; returns at once."""
        self._thread = threading.Thread(target=self._hold, name="ray-session")
        self._thread.start()

    @contextmanager
    def session(self, console: Console) -> Iterator[Path]:
        """Wait for Ray, then do what `ray_session` does; raises what that raises."""
        with self:
            with console.status("Starting Ray"):
                self._ready.wait()
            if self._error is not None:
                raise self._error
            yield self._folder

    def _hold(self) -> None:
        from search.execution.ray_session import ray_session  # takes seconds

        try:
            with ray_session("", Console(file=io.StringIO())) as self._folder:
                self._ready.set()
                self._over.wait()
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
