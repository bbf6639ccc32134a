"""The feature store: what is computed once per machine, for all its processes.

A file is named by the digest of the facts that its content depends on, so it is never out of date.
It is an Arrow file whose schema contains these facts, and it is mapped into memory: processes that
use it share the pages. It is written under a temporary name, flushed to the disk and renamed, so it
is complete or absent.

One process writes a file while others wait for its lock, which the system releases if the process
dies. A file is used if its footer, which is written last, its facts and its number of rows are
right; a flipped bit in the data is not detected. Any other file is computed again.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from trainables.core.files import cache_folder, flush_folder
from trainables.core.storage import StorageError

Facts = Mapping[str, Any]
"""What a file's content depends on, in JSON's types."""


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of a file in the cache against all processes of this machine. Its folder is
    created; the file need not exist. Raises `filelock.Timeout` after `timeout` seconds, if given,
    and `StorageError`."""
    folder = path.parent.parent / ".locks"
    with explained(path):
        for needed in (path.parent, folder):
            needed.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{path.parent.name}-{path.name}", timeout)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise errors of the file system as `StorageError` with a remedy."""
    try:
        yield
    except (StorageError, Timeout):
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise StorageError(
            f"'{path}': {reason}: the cache is stored there; make room, or set XDG_CACHE_HOME to a "
            "folder with room"
        ) from error


@dataclass(frozen=True)
class Stored:
    """A file of the store, mapped into memory copy-on-write."""

    batches: tuple[pa.RecordBatch, ...]
    """The rows, in the order of their computation."""
    _memory: mmap.mmap

    def matrix(self, name: str) -> Tensor:
        """A column of float32 lists of one length d, in a file of one batch: [n, d], mapped."""
        (batch,) = self.batches
        column = batch.column(name)
        buffer = column.values.buffers()[1]
        flat = self.slice(self.start(buffer), buffer.size // 4, torch.float32)
        return flat.view(len(column), -1)

    def slice(self, start: int, count: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """`count` elements from byte `start` of the file, mapped."""
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start)

    def start(self, buffer: pa.Buffer) -> int:
        """Offset of one of its buffers in the file, in bytes."""
        return int(buffer.address - pa.py_buffer(self._memory).address)


@dataclass(frozen=True)
class Store:
    """Files in one folder on a disk of this machine."""

    root: Path
    """The folder; it need not exist."""

    @classmethod
    def of_this_machine(cls) -> Store:
        """Return the store in the user's cache."""
        return cls(cache_folder() / "features")

    def path(self, facts: Facts) -> Path:
        """Path of the file with these facts."""
        return self.root / f"{hashlib.sha256(_text(facts)).hexdigest()}.arrow"

    def find(self, facts: Facts, rows: int) -> Stored | None:
        """Return the file of these facts, or None if it is missing or damaged."""
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
        """Return the file of these facts. If there is none, make it of the batches of columns that
        `compute` yields, `rows` rows in all, or wait for another process that does. Raises
        `StorageError` and what `compute` raises; then no file is left."""
        path = self.path(facts)
        if found := self.find(facts, rows):
            return found
        with locked(path):
            if found := self.find(facts, rows):  # another process was faster
                return found
            self._remove_abandoned()
            part = path.with_name(f".{path.name}.part")
            try:
                written = _write(part, path, _text(facts), compute())
                if written != rows:
                    raise ValueError(f"{rows} rows were to be stored, got {written}")
                with explained(path):
                    os.replace(part, path)
                    flush_folder(self.root)
            finally:
                part.unlink(missing_ok=True)
        found = self.find(facts, rows)
        assert found is not None, f"'{path}' was written just now"
        return found

    def _remove_abandoned(self) -> None:
        """Remove the temporary files of dead writers, whose locks are free."""
        for part in self.root.glob(".*.part"):
            path = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
            with suppress(Timeout, OSError), locked(path, timeout=0):
                part.unlink()


def _write(part: Path, path: Path, facts: bytes, batches: Iterable[Mapping[str, pa.Array]]) -> int:
    """Write a file and flush it to the disk; return the number of rows."""
    rows, writer = 0, None
    with explained(path):
        sink = pa.OSFile(str(part), "wb")
    with sink:
        for columns in batches:  # whose errors are passed on
            fields = [(name, column.type) for name, column in columns.items()]
            schema = pa.schema(fields, {b"facts": facts})
            batch = pa.record_batch(list(columns.values()), schema=schema)
            rows += len(batch)
            with explained(path):
                writer = writer or pa.ipc.new_file(sink, schema)
                writer.write_batch(batch)
        if writer is not None:
            with explained(path):
                writer.close()
    with explained(path), open(part, "rb") as file:
        os.fsync(file.fileno())
    return rows


def _text(facts: Facts) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
