"""Optuna's journal in a sweep's folder, written by the sweep's owner alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from trainables.storage import Storage

JOURNAL = "study.journal"


class Journal(BaseJournalBackend):
    """The study's operations, a line each, in a log of the sweep's storage and in memory.

    Optuna's own file backend guards every line by a lock file, which a killed driver leaves behind
    for 30 seconds, flushes every line for itself, and is stopped for good by a line that was cut
    off. Here there is one writer at a time, and what belongs together is written together.
    """

    def __init__(self, sweep: Storage, guard: Callable[[], None]) -> None:
        """Read what there is, up to the first line that is damaged; `lost` counts the rest.

        `guard` is called before every write, and raises where the sweep has another owner.
        """
        self._sweep, self._guard = sweep, guard
        self._held: list[dict[str, Any]] | None = None
        data = sweep.read_log(JOURNAL)
        self._logs, good = _whole(data)
        if good < len(data):
            sweep.replace_log(JOURNAL, data[:good])
        # A last line without its end was being written when its writer died: no damage.
        self.lost = data.count(b"\n", good)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """See `BaseJournalBackend`."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See `BaseJournalBackend`."""
        self._logs += logs
        if self._held is None:
            self._write(logs)
        else:
            self._held += logs

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what is appended in here by one write at the end, also after an error."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self._write(held)

    def _write(self, logs: list[dict[str, Any]]) -> None:
        self._guard()
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._sweep.append(JOURNAL, lines.encode())


class JournalView(BaseJournalBackend):
    """The journal as it is now, for somebody who only looks: its owner may be writing it."""

    def __init__(self, sweep: Storage) -> None:
        """Raises `StorageError`."""
        self._logs, _ = _whole(sweep.read_log(JOURNAL, owner=False))

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """See `BaseJournalBackend`."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raises `PermissionError`: nothing is changed by looking."""
        raise PermissionError("a journal that is only looked at is not written")


def _whole(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The entries up to the first that is damaged, and how many bytes they take."""
    entries, good = [], 0
    for line in data.splitlines(keepends=True):
        entry = _parse(line)
        if entry is None:
            break
        entries.append(entry)
        good += len(line)
    return entries, good


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(entry, dict) and "op_code" in entry
    return entry if whole else None
