"""Where sweeps are kept: a folder on a disk or a share, or a prefix in a bucket.

Every file is either whole or not there: a write is visible at once and for good, or not at all.
Besides files there are logs, which only grow. Names are relative, with slashes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from trainables.credentials import shown, take_secrets, with_secrets

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for which an object store that fails is asked again."""
TEMPORARY = "."
"""First character of a file that is being written, or was when its writer died."""
# What stands before a path of this machine.
_FILE = re.compile(r"file:(//(localhost)?(?=/)|(?=/[^/]))", re.IGNORECASE)
_READERS = 16  # requests at a time to an object store
_MERGE = 32  # parts of a log that are put together when it is read


class StorageError(OSError):
    """The storage does not work: full, read-only, gone. A missing file is `FileNotFoundError`."""


class Storage(ABC):
    """A folder of files that are whole or not there."""

    location: str
    """What `open_storage` makes this object of, on any machine that can reach it."""

    @abstractmethod
    def child(self, name: str) -> Storage:
        """The folder of that name in this one; it need not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content; raises `FileNotFoundError`."""

    @abstractmethod
    def write_with(self, name: str, writer: Callable[[Path], None]) -> None:
        """Make or replace a file by what `writer` writes to the local path it is given."""

    @abstractmethod
    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        """While open, a local path with the file's content; raises `FileNotFoundError`."""
        yield Path()

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders in this one, sorted."""

    @abstractmethod
    def files(self) -> list[str]:
        """Names of all files in this folder and beneath it, sorted; no temporary ones."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Add to a log. One writer at a time; a crash may leave a part of `data`, on a disk."""

    @abstractmethod
    def read_log(self, name: str, owner: bool = True) -> bytes:
        """All that was appended; empty where nothing was. Only the folder's owner may tidy it up
        meanwhile: who is not, and only looks, says so."""

    @abstractmethod
    def rewrite_log(self, name: str, data: bytes) -> None:
        """Make `data` all that was appended."""

    @abstractmethod
    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """Contents of several files, in order."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file. After it returns, a power cut does not take it back."""
        self.write_with(name, lambda path: _write_bytes(path, data))

    @abstractmethod
    def tidy(self) -> None:
        """Remove what dead writers have left. For the owner of the folder only."""

    def probe(self) -> None:
        """Make the folder, write a file and remove it; raises `StorageError`."""
        name = f".probe-{os.getpid()}"
        self.write(name, b"")
        self.delete(name)


def open_storage(location: str, patience: float = PATIENCE) -> Storage:
    """Open a path, `file://...`, or any URI that pyarrow knows (`s3://`, `gs://`, ...).

    The storage's own `location` has no secrets: `credentials.take_secrets` removes them, and every
    process that has them in its environment can open that location.

    Raises:
        StorageError: the URI is of an unknown kind, or its file system cannot be made.
    """
    folder = local_folder(location)
    if folder is not None:
        return LocalStorage(folder)
    location = take_secrets(location)
    try:
        file_system, path = FileSystem.from_uri(with_secrets(location))
    except (OSError, ValueError, NotImplementedError) as error:
        raise StorageError(shown(f"'{location}': {_line(error)}")) from error
    if not path.strip("/"):
        raise StorageError(f"'{shown(location)}': it names no bucket")
    return ObjectStorage(file_system, path, location, patience)


def local_folder(location: str) -> Path | None:
    """The folder on this machine that a location means, if it means one."""
    if found := _FILE.match(location):
        return Path(unquote(location[found.end() :]))
    return None if "://" in location else Path(location).expanduser().absolute()


def join(location: str, name: str) -> str:
    """The location of a folder in another: an absolute path, or a URI, which keeps its options."""
    folder = local_folder(location)
    if folder is not None:
        return str(folder / name)
    path, mark, query = location.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def split(location: str) -> tuple[str, str]:
    """The inverse of `join`: the location of the folder that holds it, and its name in there."""
    folder = local_folder(location)
    if folder is not None:
        return str(folder.parent), folder.name
    path, mark, query = location.partition("?")
    parent, _, name = path.rstrip("/").rpartition("/")
    return f"{parent}{mark}{query}", name


def replace_file(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. Raises `OSError` if something other than a regular file is
    there, e.g. a device, a link or a pipe."""
    _check_regular(path)
    os.replace(temporary, path)


def remove_file(path: Path) -> None:
    """Remove a file if it exists. Raises `OSError` if it is not a regular file."""
    _check_regular(path)
    path.unlink(missing_ok=True)


def _check_regular(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file; move it away first", str(path))


def is_same_folder(one: Storage, other: Storage) -> bool:
    """Whether both lead to one folder, which may have several locations (a link, another mount,
    another address): what is written at one is then there at the other. Raises `StorageError`."""
    name = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    one.write(name, b"")
    try:
        return other.exists(name)
    finally:
        one.delete(name)


class LocalStorage(Storage):
    """A folder that this machine has mounted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def child(self, name: str) -> LocalStorage:
        """See `Storage`."""
        return LocalStorage(self.root / name)

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        with _explained(self.root / name):
            return (self.root / name).read_bytes()

    def write_with(self, name: str, writer: Callable[[Path], None]) -> None:
        """Under a temporary name, flushed to the disk, renamed."""
        path = self.root / name
        with _explained(path, writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}.")
            try:
                os.close(handle)
                writer(Path(temporary))
                with open(temporary, "rb") as file:
                    os.fchmod(file.fileno(), 0o644)
                    os.fsync(file.fileno())
                replace_file(Path(temporary), path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
            _flush_folder(path.parent)

    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        """See `Storage`."""
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(path)
        with _explained(path):
            yield path

    def delete(self, name: str) -> None:
        """See `Storage`."""
        with _explained(self.root / name):
            remove_file(self.root / name)

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return (self.root / name).is_file()

    def folders(self) -> list[str]:
        """See `Storage`."""
        if not self.root.is_dir():
            return []
        with _explained(self.root), os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def files(self) -> list[str]:
        """See `Storage`."""
        return sorted(
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(self.root)
            for name in names
            if not name.startswith(TEMPORARY)
        )

    def append(self, name: str, data: bytes) -> None:
        """In one write, flushed to the disk; a write that fails is taken back."""
        path = self.root / name
        with _explained(path, writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab", buffering=0) as file:
                end = os.fstat(file.fileno()).st_size
                try:
                    if file.write(data) != len(data):
                        raise OSError(28, "No space left on device")
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        os.ftruncate(file.fileno(), end)
                    raise

    def read_log(self, name: str, owner: bool = True) -> bytes:
        """See `Storage`."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def rewrite_log(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        self.write(name, data)

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """See `Storage`."""
        return map(self.read, names)

    def tidy(self) -> None:
        """See `Storage`."""
        for path in self.root.rglob(f"{TEMPORARY}*.*"):
            with suppress(OSError):
                remove_file(path)


class ObjectStorage(Storage):
    """A prefix in an object store, where an object appears when its upload is complete.

    What fails is tried again for `patience` seconds: a network that is away comes back.
    """

    def __init__(self, file_system: FileSystem, root: str, location: str, patience: float) -> None:
        self._fs, self._root, self.location = file_system, root.rstrip("/"), location
        self._patience = patience
        self._next: dict[str, int] = {}

    def child(self, name: str) -> ObjectStorage:
        """See `Storage`."""
        location = join(self.location, name)
        return ObjectStorage(self._fs, f"{self._root}/{name}", location, self._patience)

    def read(self, name: str) -> bytes:
        """See `Storage`."""

        def fetch() -> bytes:
            with self._fs.open_input_stream(self._path(name)) as stream:
                return stream.read()  # type: ignore[no-any-return]

        return self._patiently(fetch)

    def write_with(self, name: str, writer: Callable[[Path], None]) -> None:
        """Through a local file, so that nothing large is held in memory."""
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            path = Path(folder) / "file"
            with _explained(path):
                writer(path)
            self._patiently(partial(self._upload, path, name))

    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        """See `Storage`."""
        with tempfile.TemporaryDirectory(prefix="download-") as folder:
            path = Path(folder) / Path(name).name

            def fetch() -> None:
                with (
                    self._fs.open_input_stream(self._path(name)) as source,
                    open(path, "wb") as target,
                ):
                    while block := source.read(1 << 22):
                        target.write(block)

            self._patiently(fetch)
            yield path

    def delete(self, name: str) -> None:
        """See `Storage`."""
        with suppress(FileNotFoundError):
            self._patiently(lambda: self._fs.delete_file(self._path(name)))

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        info = self._patiently(lambda: self._fs.get_file_info(self._path(name)))
        return bool(info.type == FileType.File)

    def folders(self) -> list[str]:
        """See `Storage`."""
        return sorted(i.base_name for i in self._list(False) if i.type == FileType.Directory)

    def files(self) -> list[str]:
        """See `Storage`."""
        names = (i.path for i in self._list(True) if i.type == FileType.File)
        return sorted(name.removeprefix(f"{self._root}/") for name in names)

    def append(self, name: str, data: bytes) -> None:
        """One object a call: objects cannot grow."""
        if name not in self._next:
            parts = self.child(name).files()
            self._next[name] = 1 + max((_part_number(part) for part in parts), default=-1)
        self.write(f"{name}/{self._next[name]:09d}.part", data)
        self._next[name] += 1

    def read_log(self, name: str, owner: bool = True) -> bytes:
        """All parts together; many of them are put together for the next reader."""
        log = self.child(name)
        parts = log.files()
        whole = [part for part in parts if part.endswith(".whole")][-1:]
        start = _part_number(whole[0]) if whole else -1
        late = [p for p in parts if p.endswith(".part") and _part_number(p) > start]
        data = b"".join(log.read_many([*whole, *late]))
        if owner and len(late) >= _MERGE:
            self.rewrite_log(name, data)
        return data

    def rewrite_log(self, name: str, data: bytes) -> None:
        """A whole replaces all parts up to its number: a crash in between loses nothing."""
        log = self.child(name)
        parts = log.files()
        number = max((_part_number(part) for part in parts), default=-1) + 1
        log.write(f"{number:09d}.whole", data)
        self._next[name] = number + 1
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(log.delete, parts))

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """See `Storage`."""
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(self.read, names)

    def tidy(self) -> None:
        """Nothing: what was not uploaded whole is not there."""

    def _upload(self, path: Path, name: str) -> None:
        with open(path, "rb") as source:
            stream = self._fs.open_output_stream(self._path(name))
            while block := source.read(1 << 22):
                stream.write(block)
            stream.close()

    def _list(self, recursive: bool) -> list[FileInfo]:
        selector = FileSelector(self._root, recursive=recursive, allow_not_found=True)
        found: list[FileInfo] = self._patiently(lambda: self._fs.get_file_info(selector))
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _patiently(self, act: Callable[[], T]) -> T:
        deadline, wait = time.monotonic() + self._patience, 0.2
        while True:
            try:
                return act()
            except FileNotFoundError:
                raise
            except OSError as error:
                if _is_refusal(error) or time.monotonic() + wait > deadline:
                    raise StorageError(shown(f"'{self.location}': {_line(error)}")) from error
            time.sleep(wait)
            wait = min(2 * wait, 5.0)


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path, writing: bool = False) -> Iterator[None]:
    """Errors of the file system as `StorageError`, but for a missing file that is read."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not writing:
            raise
        raise StorageError(f"'{path}': {error.strerror or error}") from error


def _part_number(name: str) -> int:
    return int(name.partition(".")[0])


def _is_refusal(error: OSError) -> bool:
    """Whether the store has answered, and the answer will not change."""
    text = str(error)
    return isinstance(error, PermissionError) or bool(
        re.search(
            r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT|HTTP status 40[13]"
            r"|Bucket .* not found",
            text,
        )
    )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
