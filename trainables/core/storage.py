"""Storage of sweeps: a folder on a disk or a share, or a prefix in a bucket.

A file is complete or absent: a write becomes visible at once, permanently, or not at all. Besides
files there are logs, which only grow. Names are relative, with slashes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from trainables.core.credentials import shown, take_secrets, with_secrets
from trainables.core.files import (
    expanded,
    flush_folder,
    kind_of,
    make_folder,
    open_regular,
    remove_file,
    replace_file,
    temporary_folder,
)

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for which a failed request to an object store is repeated."""
TEMPORARY = "."
"""First character of a file that is being written, or whose writer died."""
_FILE = re.compile(r"file:(//(localhost)?(?=/)|(?=/[^/]))", re.IGNORECASE)  # of this machine
_READERS = 16  # simultaneous requests to an object store


class StorageError(OSError):
    """The storage is full, read-only or unreachable. A missing file is `FileNotFoundError`."""


class Storage(ABC):
    """A folder of files that are complete or absent."""

    location: str
    """Argument of `open_storage` for this folder, on any machine that can reach it."""

    @abstractmethod
    def child(self, name: str) -> Storage:
        """Return a folder in this one; it need not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's content; raises `FileNotFoundError`."""

    @abstractmethod
    def write_with(self, name: str, writer: Callable[[Path], object]) -> None:
        """Create or replace a file with what `writer` writes to the local path that it gets."""

    @abstractmethod
    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        """Provide a local path with the file's content; raises `FileNotFoundError`."""
        yield Path()

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether the file exists."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the names of the folders in this one, sorted."""

    @abstractmethod
    def files(self) -> list[str]:
        """Return the names of all files in this folder and below it, sorted, without temporary
        ones."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Append to a log, one writer at a time. On a disk, a crash may leave a part of `data`."""

    @abstractmethod
    def read_log(self, name: str) -> bytes:
        """Return everything that was appended to a log."""

    @abstractmethod
    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Yield the contents of several files, in order; None for one that does not exist."""

    def _read_if_there(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:  # deleted since it was listed
            return None

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file, which then survives a power cut."""
        self.write_with(name, lambda path: path.write_bytes(data))

    @abstractmethod
    def size(self) -> int:
        """Return the bytes of all files in this folder and below it."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the folder and everything below it, if it exists. A crash may leave a part."""

    @abstractmethod
    def clean_temporary_files(self) -> None:
        """Remove the temporary files of dead writers; only the owner of the folder may."""

    def probe(self) -> None:
        """Create the folder, write a file and remove it; raises `StorageError`."""
        name = f".probe-{os.getpid()}"
        self.write(name, b"")
        self.delete(name)


def open_storage(location: str, patience: float = PATIENCE) -> Storage:
    """Open a path, `file://...`, or any URI that pyarrow knows (`s3://`, `gs://`, ...).

    The storage's own `location` has no secrets: `credentials.take_secrets` removes them, and every
    process that has them in its environment can open that location.
    Raises `StorageError` for an unknown scheme, or if its file system cannot be opened."""
    folder = local_folder(location)
    if folder is not None:
        return LocalStorage(folder)
    from pyarrow.fs import FileSystem  # loads numpy; not needed for folders

    location = take_secrets(location)
    try:
        file_system, path = FileSystem.from_uri(_limited(with_secrets(location), patience))
    except (OSError, ValueError, NotImplementedError) as error:  # the last: an unknown scheme
        raise StorageError(shown(f"'{location}': {_line(error)}")) from error
    if not path.strip("/"):
        raise StorageError(f"'{shown(location)}': it must name a bucket")
    return ObjectStorage(file_system, path, location, patience)


def _limited(uri: str, patience: float) -> str:
    """The URI with a limit for the retries of Google's client, which are 15 minutes by default."""
    limit = "retry_limit_seconds="
    if not re.match("gc?s://", uri) or limit in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{limit}{patience:g}"


def local_folder(location: str) -> Path | None:
    """Return the folder on this machine that a location names, or None."""
    if found := _FILE.match(location):
        return Path(unquote(location[found.end() :]))
    return None if "://" in location else expanded(location).absolute()


def join(location: str, name: str) -> str:
    """Return the location of a folder in another: an absolute path, or a URI with its options."""
    folder = local_folder(location)
    if folder is not None:
        return str(folder / name)
    path, mark, query = location.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def split(location: str) -> tuple[str, str]:
    """Invert `join`: return the location of the parent folder, and the name in it."""
    folder = local_folder(location)
    if folder is not None:
        return str(folder.parent), folder.name
    path, mark, query = location.partition("?")
    parent, _, name = path.rstrip("/").rpartition("/")
    return f"{parent}{mark}{query}", name


def is_same_folder(one: Storage, other: Storage) -> bool:
    """Return whether both are the same folder, which may have several locations (a link, another
    mount or address), by writing to one and reading the other. Raises `StorageError`."""
    name = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    one.write(name, b"")
    try:
        return other.exists(name)
    finally:
        one.delete(name)


class LocalStorage(Storage):
    """A folder of this machine's file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def child(self, name: str) -> LocalStorage:
        return LocalStorage(self.root / name)

    def read(self, name: str) -> bytes:
        with _explained(self.root / name), open_regular(self.root / name) as file:
            return file.read()

    def write_with(self, name: str, writer: Callable[[Path], object]) -> None:
        """Write to a temporary name, flush to the disk, rename."""
        path = self.root / name
        with _explained(path, writing=True):
            make_folder(path.parent)
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
            flush_folder(path.parent)

    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        path = self.root / name
        if not self.exists(name):
            raise FileNotFoundError(path)
        with _explained(path):
            yield path

    def delete(self, name: str) -> None:
        with _explained(self.root / name):
            remove_file(self.root / name)

    def exists(self, name: str) -> bool:
        with _explained(self.root / name):  # e.g. a name that is too long
            return (self.root / name).is_file()

    def folders(self) -> list[str]:
        with _explained(self.root):
            if not self.root.is_dir():
                return []
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())

    def files(self) -> list[str]:
        def refuse(error: OSError) -> None:  # what is left out would pass for what never was
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error

        with _explained(self.root):
            return sorted(
                os.path.relpath(os.path.join(folder, name), self.root)
                for folder, _, names in os.walk(self.root, onerror=refuse, followlinks=True)
                for name in names
                if not name.startswith(TEMPORARY)
            )

    def append(self, name: str, data: bytes) -> None:
        """Append in one write, flushed to the disk; a write that fails is undone."""
        path = self.root / name
        with _explained(path, writing=True):
            make_folder(path.parent)
            if path.exists() and not path.is_file():
                raise OSError(f"it is {kind_of(path)}, not a regular file")
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

    def read_log(self, name: str) -> bytes:
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        return map(self._read_if_there, names)

    def size(self) -> int:
        return sum((self.root / name).lstat().st_size for name in self.files())

    def remove(self) -> None:
        with _explained(self.root, writing=True):
            if self.root.is_symlink():
                self.root.unlink()
            elif self.root.is_dir():
                shutil.rmtree(self.root)
                flush_folder(self.root.parent)

    def clean_temporary_files(self) -> None:
        for path in self.root.rglob(f"{TEMPORARY}*.*"):
            with suppress(OSError):
                remove_file(path)


class ObjectStorage(Storage):
    """A prefix in an object store, in which an object appears when its upload is complete.

    Failed requests are repeated for `patience` seconds, as networks recover.
    """

    def __init__(self, file_system: FileSystem, root: str, location: str, patience: float) -> None:
        self._fs, self._root, self.location = file_system, root.rstrip("/"), location
        self._patience = patience
        self._next: dict[str, int] = {}

    def child(self, name: str) -> ObjectStorage:
        location = join(self.location, name)
        return ObjectStorage(self._fs, f"{self._root}/{name}", location, self._patience)

    def read(self, name: str) -> bytes:

        def fetch() -> bytes:
            with self._fs.open_input_stream(self._path(name)) as stream:
                return stream.read()  # type: ignore[no-any-return]

        return self._with_retries(fetch)

    def write_with(self, name: str, writer: Callable[[Path], object]) -> None:
        """Write through a local file, so that large files need no memory."""
        with temporary_folder() as folder:
            path = folder / "file"
            with _explained(path):
                writer(path)
            self._with_retries(partial(self._upload, path, name))

    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        with temporary_folder() as folder:
            path = folder / Path(name).name

            def fetch() -> None:
                with (
                    self._fs.open_input_stream(self._path(name)) as source,
                    open(path, "wb") as target,
                ):
                    while block := source.read(1 << 22):
                        target.write(block)

            self._with_retries(fetch)
            yield path

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._with_retries(lambda: self._fs.delete_file(self._path(name)))

    def exists(self, name: str) -> bool:
        info = self._with_retries(lambda: self._fs.get_file_info(self._path(name)))
        return bool(info.is_file)

    def folders(self) -> list[str]:
        return sorted(i.base_name for i in self._list(False) if not i.is_file)

    def files(self) -> list[str]:
        names = (i.path for i in self._list(True) if i.is_file)
        return sorted(name.removeprefix(f"{self._root}/") for name in names)

    def append(self, name: str, data: bytes) -> None:
        """Write one object per call, because objects cannot grow."""
        if name not in self._next:
            parts = self.child(name).files()
            self._next[name] = 1 + max(
                (int(part.removesuffix(".part")) for part in parts), default=-1
            )
        self.write(f"{name}/{self._next[name]:09d}.part", data)
        self._next[name] += 1

    def read_log(self, name: str) -> bytes:
        log = self.child(name)
        return b"".join(part for part in log.read_many(log.files()) if part is not None)

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(self._read_if_there, names)

    def size(self) -> int:
        return sum(info.size for info in self._list(True) if info.is_file)

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self._with_retries(lambda: self._fs.delete_dir(self._root))

    def clean_temporary_files(self) -> None:
        """Do nothing: incomplete uploads are not visible."""

    def _upload(self, path: Path, name: str) -> None:
        with open(path, "rb") as source:
            stream = self._fs.open_output_stream(self._path(name))
            while block := source.read(1 << 22):
                stream.write(block)
            stream.close()

    def _list(self, recursive: bool) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._root, recursive=recursive, allow_not_found=True)
        found: list[FileInfo] = self._with_retries(lambda: self._fs.get_file_info(selector))
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _with_retries(self, act: Callable[[], T]) -> T:
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


@contextmanager
def _explained(path: Path, writing: bool = False) -> Iterator[None]:
    """Raise errors of the file system, except a missing file on reading, as `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not writing:
            raise
        raise StorageError(f"'{path}': {error.strerror or error}") from error


def _is_refusal(error: OSError) -> bool:
    """Whether the store refused the request, so that repeating it is useless."""
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
