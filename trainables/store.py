"""The feature store: what is computed once on a machine, for all its processes and for ever.

A file is named by the digest of the facts that its content depends on, so nothing in it is ever
out of date. It is an Arrow file whose schema carries these facts in words. It is mapped into
memory, not read: processes that use it share the pages. It appears whole: it is written under a
temporary name, flushed to the disk and renamed.

The temporary file is also the lock. Who holds it writes; others wait. The system lets go of the
lock of a process that dies, and the next owner starts the file anew.

A file is used if its footer, which is written last, its facts and its number of rows are right; a
flipped bit in the data is not noticed. Any other file is computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from trainables.cache import cache_folder
from trainables.storage import StorageError, replace_file

Facts = Mapping[str, Any]
"""What a file's content depends on, in JSON's types."""


@dataclass(frozen=True)
class Stored:
    """A file of the store, mapped into memory. Its pages are the system's until they are written
    to; what is written stays in this process."""

    batches: tuple[pa.RecordBatch, ...]
    """The rows, in the order in which they were computed."""
    _memory: mmap.mmap

    def matrix(self, name: str) -> Tensor:
        """A column of float32 lists of one length d, in a file of one batch: [n, d], mapped."""
        (batch,) = self.batches
        column = batch.column(name)
        return self.flat(column.values.buffers()[1], torch.float32).view(len(column), -1)

    def flat(self, buffer: pa.Buffer, dtype: torch.dtype) -> Tensor:
        """All of a buffer's elements [m], mapped."""
        return self.piece(self.start(buffer), buffer.size // dtype.itemsize, dtype)

    def piece(self, start: int, count: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """`count` elements from byte `start` of the file, mapped."""
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start)

    def start(self, buffer: pa.Buffer) -> int:
        """Where in the file one of its buffers starts, in bytes."""
        return int(buffer.address - pa.py_buffer(self._memory).address)


@dataclass(frozen=True)
class Store:
    """Files in one folder on a disk of this machine."""

    root: Path
    """The folder; it need not exist."""

    @classmethod
    def of_this_machine(cls) -> Store:
        """The one in the user's cache."""
        return cls(cache_folder() / "features")

    def path(self, facts: Facts) -> Path:
        """Where a file with these facts lies."""
        return self.root / f"{hashlib.sha256(_text(facts)).hexdigest()}.arrow"

    def find(self, facts: Facts, rows: int) -> Stored | None:
        """The file of these facts, if it is there and sound."""
        try:
            with open(self.path(facts), "rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            reader = pa.ipc.open_file(pa.py_buffer(memory))
            if (reader.schema.metadata or {}).get(b"facts") != _text(facts):
                return None
            batches = tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
        except (OSError, ValueError, pa.ArrowException):  # missing, empty, cut off, something else
            return None
        return Stored(batches, memory) if sum(map(len, batches)) == rows else None

    def get(
        self,
        facts: Facts,
        rows: int,
        compute: Callable[[], Iterable[Mapping[str, pa.Array]]],
    ) -> Stored:
        """The file of these facts; where there is none, it is made of the batches of columns that
        `compute` gives, `rows` rows in all. Where another process is at it, it is waited for.
        Raises `StorageError`, and what `compute` raises; then nothing is left behind."""
        path = self.path(facts)
        part = path.with_name(f".{path.stem}.part")
        while (found := self.find(facts, rows)) is None:
            with _explained(path):
                self.root.mkdir(parents=True, exist_ok=True)
            with _owned(part) as owned:
                # Somebody may have been faster, between the look and the lock.
                if owned and self.find(facts, rows) is None:
                    self._sweep(part)
                    written = _write(part, path, _text(facts), compute())
                    if written != rows:
                        raise ValueError(f"{rows} rows were to be stored, got {written}")
                    with _explained(path):
                        replace_file(part, path)
                        _flush_folder(self.root)
        return found

    def _sweep(self, own: Path) -> None:
        """Remove what dead writers of other files have left."""
        for part in self.root.glob(".*.part"):
            if part != own:
                with suppress(OSError), _owned(part, wait=False):
                    pass  # a file that can be owned has no writer; its owner removes it


@contextmanager
def _owned(part: Path, wait: bool = True) -> Iterator[bool]:
    """The temporary file, locked. False where it has been finished or removed while it was waited
    for. It is removed at the end, unless it has been renamed."""
    with _explained(part):
        lock = open(part, "ab", buffering=0)  # noqa: SIM115 - closing it is what unlocks it
    with lock:
        with _explained(part):
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not _is_at(lock, part):
            yield False
            return
        try:
            yield True
        finally:
            if _is_at(lock, part):
                with suppress(OSError):
                    part.unlink()


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _write(part: Path, path: Path, facts: bytes, batches: Iterable[Mapping[str, pa.Array]]) -> int:
    """The whole file, flushed to the disk; returns the number of rows."""
    rows, writer = 0, None
    with _explained(path):
        sink = pa.OSFile(str(part), "wb")
    with sink:
        for columns in batches:  # which may fail for reasons of their own
            fields = [(name, column.type) for name, column in columns.items()]
            schema = pa.schema(fields, {b"facts": facts})
            batch = pa.record_batch(list(columns.values()), schema=schema)
            rows += len(batch)
            with _explained(path):
                writer = writer or pa.ipc.new_file(sink, schema)
                writer.write_batch(batch)
        if writer is not None:
            with _explained(path):
                writer.close()
    with _explained(path), open(part, "rb") as file:
        os.fsync(file.fileno())
    return rows


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"'{path}': {reason}: features are kept there; make room, or set XDG_CACHE_HOME to a "
            "folder with room"
        ) from error


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _text(facts: Facts) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
