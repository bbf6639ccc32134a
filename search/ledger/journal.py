"""Optuna's journal in a sweep's folder, written by the sweep's owner alone.

Every line ends with a checksum of all entries up to it. So a line that was changed, lost, doubled
or moved is known, also where it still is JSON. A line without one is of an older version, and may
stand only before all that have one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from trainables.storage import Storage

JOURNAL = "study.journal"
DAMAGED = "study.journal.damaged"
"""What was cut off from a journal."""
_MARK = b',"crc":"'


class JournalView(BaseJournalBackend):
    """The journal as it is now, for somebody who only looks: its owner may be writing it."""

    def __init__(self, sweep: Storage) -> None:
        """Raises `StorageError`."""
        self._logs, _, _ = _whole(sweep.read_log(JOURNAL, owner=False))
        self._read = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """See `BaseJournalBackend`."""
        for number in range(log_number_from, len(self._logs)):
            self._read = number
            yield self._logs[number]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raises `PermissionError`: nothing is changed by looking."""
        raise PermissionError("a journal that is only looked at is not written")

    def cut(self) -> None:
        """Leave out the entry that was read last, and all after it."""
        del self._logs[self._read :]


class Journal(JournalView):
    """The study's operations, a line each, in a log of the sweep's storage and in memory.

    Optuna's own file backend guards every line by a lock file, which a killed driver leaves behind
    for 30 seconds, flushes every line for itself, and is stopped for good by a line that was cut
    off. Here there is one writer at a time, and what belongs together is written together.
    """

    def __init__(self, sweep: Storage, guard: Callable[[], None]) -> None:
        """Read what there is, up to the first line that is damaged. The rest is put away beside
        the journal, and `lost` counts its lines.

        `guard` is called before every write, and raises where the sweep has another owner.
        """
        self._sweep, self._guard = sweep, guard
        self._held: list[dict[str, Any]] | None = None
        self._read = self.lost = 0
        data = sweep.read_log(JOURNAL)
        self._logs, good, self._sum = _whole(data)
        self._put_away(data, good)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See `BaseJournalBackend`."""
        self._logs += logs
        if self._held is None:
            self._write(logs)
        else:
            self._held += logs

    def cut(self) -> None:
        """See `JournalView`. It is put away with what was damaged."""
        data = self._sweep.read_log(JOURNAL)
        good = sum(map(len, data.splitlines(keepends=True)[: self._read]))
        self._logs, _, self._sum = _whole(data[:good])
        self._put_away(data, good)

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

    def _put_away(self, data: bytes, good: int) -> None:
        # A last line without its end was being written when its writer died: no damage.
        if lost := data.count(b"\n", good):
            self._sweep.append(DAMAGED, data[good:])
        if good < len(data):
            self._sweep.rewrite_log(JOURNAL, data[:good])
        self.lost += lost

    def _write(self, logs: list[dict[str, Any]]) -> None:
        self._guard()
        lines, total = b"", self._sum
        for log in logs:
            line, total = _line(json.dumps(log, separators=(",", ":")).encode(), total)
            lines += line
        self._sweep.append(JOURNAL, lines)
        self._sum = total


def _line(entry: bytes, before: int) -> tuple[bytes, int]:
    """An entry's line, and the checksum that it ends with; `before` is that of the line before."""
    total = zlib.crc32(entry, before)
    return b'%b%b%08x"}\n' % (entry[:-1], _MARK, total), total


def _whole(data: bytes) -> tuple[list[dict[str, Any]], int, int]:
    """The entries up to the first that is damaged, how many bytes they take, and the last one's
    checksum."""
    entries: list[dict[str, Any]] = []
    good, total, checked = 0, 0, False
    for line in data.splitlines(keepends=True):
        start, mark, _ = line.rpartition(_MARK)
        if mark:
            expected, total_here = _line(start + b"}", total)
            checked = True
        else:
            expected, total_here = line, zlib.crc32(line, total)
        entry = _parse(line)
        if entry is None or line != expected or (checked and not mark):
            break
        entries.append(entry)
        good, total = good + len(line), total_here
    return entries, good, total


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not (line.endswith(b"\n") and isinstance(entry, dict) and "op_code" in entry):
        return None
    entry.pop("crc", None)
    return entry
