"""One driver at a time on one sweep."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO, Self

from search.problems import UsageError


class SweepLock:
    """An exclusive lock on a sweep's folder, freed by the operating system when its holder dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Raises `UsageError`, naming the holder, while another driver runs the sweep."""
        file = open(self._path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UsageError(
                [
                    f"One driver at a time may run a sweep, and '{self._path.parent.name}' is "
                    f"being run already by {holder}. Wait for it, stop it, or start another sweep "
                    "with --name."
                ]
            ) from None
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None
