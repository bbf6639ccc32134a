"""A queue on disk: what has been appended survives the process that appended it.

The outbox is a file of JSON lines that only ever grows, and a mark beside it: the offset up to
which the lines have been delivered. Delivery is at least once. A crash between a delivery and its
mark repeats the delivery, so whoever delivers must be idempotent, and every time stamp belongs
inside the event.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""JSON, with its `kind` as the first key."""


class Outbox:
    """The queue of one sweep. One process at a time may hold it; its threads may share it.

    Beside `NAME.jsonl` it keeps `NAME.delivered` (the mark) and `NAME.refused.jsonl` (events that
    the receiver will never take, each with the reason).

    Nothing is fsynced: the death of the process loses nothing, the death of the machine may lose
    the last seconds, and the queue is only ever a copy of what the sweep's folder holds.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file `path`, and drop a last line that a crash left unfinished.

        Raises:
            OSError: the file cannot be opened for writing, or another process holds it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._mark = path.with_suffix(".delivered")
        self._refused = path.with_suffix(".refused.jsonl")
        self._lock = threading.Lock()
        self._file = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end = _end_of_last_whole_line(path)
            self._file.truncate(self._end)
            self._delivered = self._read_mark()
        except OSError as error:
            self._file.close()
            if error.errno == errno.EWOULDBLOCK:
                raise OSError(error.errno, "another process delivers it", str(path)) from None
            raise

    @property
    def behind(self) -> bool:
        """Whether something is still to be delivered."""
        return self._delivered < self._end

    def append(self, event: Event) -> None:
        """Add one event, by a single write of a whole line.

        Raises:
            OSError: the disk is full or gone; the queue is as it was before.
            TypeError, ValueError: the event is not JSON (NaN is not).
        """
        with self._lock:
            self._end += _write_line(self._file.fileno(), event, self._end)

    def pending(self) -> Iterator[tuple[int, Event]]:
        """Yield the undelivered events in order, each with the offset to mark once it is delivered.

        A line that is not JSON (a damaged disk) comes as an event of the kind "unreadable".

        Raises:
            OSError: the file cannot be read any more.
        """
        for offset, line in self._lines(self._delivered):
            yield offset, _parse(line)

    def undelivered(self) -> int:
        """How many events are still to be delivered. Raises OSError, as `pending`."""
        return sum(1 for _ in self._lines(self._delivered))

    def of_kinds(self, *kinds: str) -> Iterator[Event]:
        """Yield every event of these kinds, delivered or not. Raises OSError, as `pending`."""
        heads = tuple(f'{{"kind":"{kind}",'.encode() for kind in kinds)
        for _, line in self._lines(0):
            if line.startswith(heads):  # most lines are others, and parsing is slow
                yield _parse(line)

    def mark_delivered(self, offset: int) -> None:
        """Remember that everything before `offset` has been delivered.

        Raises:
            OSError: the mark could not be written. This object goes on from `offset` all the same;
                a new process would repeat what came after the last mark.
        """
        self._delivered = offset
        new = self._mark.with_suffix(".delivered.new")
        new.write_text(f"{offset}\n")
        new.replace(self._mark)

    def refuse(self, event: Event, reason: str) -> None:
        """Put an event aside that the receiver will never take.

        Raises:
            OSError: the note could not be written.
        """
        with self._refused.open("ab", buffering=0) as file:
            _write_line(file.fileno(), {"reason": reason, "event": event}, file.tell())

    def close(self) -> None:
        """Close the file; `append` is an error from here on."""
        self._file.close()

    def _lines(self, offset: int) -> Iterator[tuple[int, bytes]]:
        end = self._end
        with self.path.open("rb") as lines:
            lines.seek(offset)
            while offset < end:
                line = lines.readline()
                if not line:
                    raise OSError(errno.EIO, "the outbox has become shorter", str(self.path))
                offset += len(line)
                yield offset, line

    def _read_mark(self) -> int:
        try:
            offset = int(self._mark.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        if offset > self._end:
            # The machine died and took the end of the file along. What is left was delivered, and
            # the mark has to come back, or it would cover events that are still to be appended.
            self.mark_delivered(self._end)
            return self._end
        # Any other offset is not ours. Repeating everything is safe, starting inside a line is not.
        return offset if offset >= 0 and _ends_a_line(self.path, offset) else 0


def waiting(path: Path) -> int:
    """How many events of an outbox are not delivered, without taking it from who delivers it; none
    where there is no outbox. Raises OSError."""
    try:
        mark = int(path.with_suffix(".delivered").read_text())
    except (FileNotFoundError, ValueError):
        mark = 0
    if not path.exists():
        return 0
    with path.open("rb") as lines:
        lines.seek(max(0, mark))
        return sum(line.endswith(b"\n") for line in lines)


def refused(path: Path) -> int:
    """How many events of an outbox the receiver would not take. Raises OSError."""
    file = path.with_suffix(".refused.jsonl")
    return file.read_bytes().count(b"\n") if file.exists() else 0


def put_away(path: Path) -> None:
    """Rename the files of an outbox to `*.old`: the next one at `path` begins empty.

    Raises:
        OSError: they cannot be renamed.
    """
    for suffix in (".delivered", ".refused.jsonl", ".jsonl"):
        file = path.with_suffix(suffix)
        with suppress(FileNotFoundError):
            file.replace(file.with_name(f"{file.name}.old"))


def _write_line(file: int, event: Event, end: int) -> int:
    line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    written = os.write(file, line)
    if written != len(line):
        os.ftruncate(file, end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return written


def _parse(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict):
        return event
    return {"kind": "unreadable", "line": line.decode(errors="replace")}


def _ends_a_line(path: Path, offset: int) -> bool:
    if offset == 0:
        return True
    with path.open("rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def _end_of_last_whole_line(path: Path, block: int = 1 << 16) -> int:
    """The offset after the last newline, found from the end: the file may be large."""
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        while start > 0:
            stop, start = start, max(0, start - block)
            file.seek(start)
            newline = file.read(stop - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
    return 0
