"""Files of this machine: what is at a path, reading, replacing and removing files, and temporary
folders, which are removed even if their process was killed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout


def expanded(path: str | Path) -> Path:
    """Replace `~` or `~USER` at the beginning by the home folder. The name of an unknown user is
    kept, for which `Path.expanduser` raises `RuntimeError`."""
    return Path(os.path.expanduser(path))


def kind_of(path: str | Path) -> str:
    """Return what is stored at a path, e.g. `a folder`, `a named pipe` or `missing`."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to a missing file" if os.path.islink(path) else "missing"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a symbolic link that leads to itself"
        return f"not accessible ({error.strerror})"
    except ValueError:  # a NUL, or a character that no file name can have
        return "not a valid path"
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Anything else raises `OSError` at once, even a named pipe
    that no process writes to."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        if (kind := kind_of(path)) == "a file":
            raise
        raise OSError(f"it is {kind}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"it is {kind_of(path)}, not a regular file")
    return os.fdopen(handle, "rb")


def read_regular(path: str | Path) -> bytes:
    """Return the content of a regular file. Raises `OSError` with the reason, for the middle of a
    sentence."""
    try:
        with open_regular(path) as stream:
            return stream.read()
    except FileNotFoundError:
        raise OSError(f"it is {kind_of(path)}") from None


def read_text(path: str | Path) -> str:
    """Return the text of a regular file in UTF-8, without a byte order mark; raises
    `OSError` like `read_regular`."""
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OSError("it is not UTF-8 text") from None


def cache_folder() -> Path:
    """This user's cache on this machine: `few-shot-clip-search` in $XDG_CACHE_HOME, or in ~/.cache.
    It need not exist; everything in it can be computed again."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "few-shot-clip-search"


_FOLDER, _LOCK = "few-shot-", "few-shot-search.lock"


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Create a folder that only this user can enter, and remove it afterwards.

    It holds a lock file. The kernel releases the lock of a process that ends in any way, so that
    `remove_abandoned_folders` recognises the folders of killed processes.
    """
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=parent))
    try:
        with FileLock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned_folders(parent: Path) -> None:
    """Remove this user's temporary folders in `parent` whose process has ended."""
    for folder in parent.glob(f"{_FOLDER}*"):
        with contextlib.suppress(OSError, Timeout):
            lock = folder / _LOCK
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or not lock.is_file():
                continue
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


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
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file; move it away first", str(path))


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):  # a parent that cannot be read
            flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
