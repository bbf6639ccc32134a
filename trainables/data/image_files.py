"""Image files: listing the folders that hold them, reading the lists that name them, and a sequence
of them that is decoded on demand. Nothing is ever written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from trainables.core.files import kind_of, read_regular
from trainables.core.text import printable, unprintable
from trainables.data.base import AwayError, DataError, Images, fingerprint
from trainables.images.decode import ImageError, image_suffixes, read_image

LEAVE_OUT = ", or leave such images out with --skip-unreadable"
"""What an error about an image suggests beside its remedy."""
_QUERIED = 2000  # files per request to the file system
_THREADS = 4
_IGNORED = ("thumbs.db", "desktop.ini")
"""Files that file managers leave in a folder."""
_LEFT_BEHIND = frozenset(
    {"@eaDir", "@Recycle", "@Recently-Snapshot", "@__thumb", "__MACOSX", "__pycache__"}
)
"""Folders that a NAS, macOS and Python leave behind; any other name may be a class's."""


@dataclass(frozen=True)
class ImageFiles(Images):
    """Image files below one folder."""

    root: Path
    """The folder."""
    paths: tuple[str, ...]
    """Relative to it, with slashes, or absolute."""

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> Tensor:
        file = self.root / self.paths[position]
        try:
            return read_image(file)
        except ImageError as error:
            kind = AwayError if error.may_pass else DataError
            raise kind(_unreadable(file, str(error), error.remedy)) from None

    def name(self, position: int) -> str:
        return self.paths[position]

    def take(self, index: Sequence[int]) -> ImageFiles:
        return ImageFiles(self.root, tuple(self.paths[row] for row in index))

    def content(self) -> str:
        """Digest of the files' paths, sizes and modification times; raises `DataError` if one is
        missing."""
        root = os.path.realpath(self.root)
        files = [path if path.startswith("/") else f"{root}/{path}" for path in self.paths]
        names = "\0".join((root, *self.paths)).encode(errors="surrogateescape")
        return fingerprint(names, _stat_all(files).tobytes())


def _stat_all(files: list[str]) -> NDArray[np.int64]:
    """Size in bytes and modification time in nanoseconds of each file, [n, 2].

    Arrow asks in threads: this is all that a second use of cached features costs, and Python's own
    `stat` takes twice as long. Raises `DataError`.
    """
    query = LocalFileSystem().get_file_info
    batches = [files[i : i + _QUERIED] for i in range(0, len(files), _QUERIED)]
    sizes: list[int | None] = []
    times: list[int] = []
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            for found in map(query, batches) if len(batches) == 1 else pool.map(query, batches):
                sizes += [info.size if info.is_file else None for info in found]
                times += [info.mtime_ns for info in found]
        if None not in sizes:
            return np.stack([np.array(sizes, np.int64), np.array(times, np.int64)], axis=1)
    except (OSError, ValueError):  # it does not name the file, and knows only names in UTF-8
        pass
    return np.array([_stat(file) for file in files], np.int64).reshape(-1, 2)


def _stat(file: str) -> tuple[int, int]:
    """As `_stat_all`, for one file, which the error names."""
    if (kind := kind_of(file)) != "a file":
        raise DataError(_unreadable(file, f"it is {kind}"))
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _unreadable(file: str | Path, reason: str, remedy: str = "Restore it") -> str:
    return f"Every image must be readable: '{file}' is not ({reason}). {remedy}{LEAVE_OUT}."


# --- folders and lists ---------------------------------------------------------------------------


def folders_in(folder: Path) -> list[str]:
    """Return the names of the visible folders in a folder, sorted; raises `DataError`."""
    found = [entry.name for entry in _entries(folder) if _is(entry, "a folder")]
    return _as_text(folder, sorted(found))


def images_in(folder: Path, skipped: list[str] | None = None) -> list[str]:
    """Return the names of the visible image files in a class folder, sorted.

    Files are recognised by their suffix and not opened, so that a million of them are listed in
    seconds. The paths of visible files that are no images are appended to `skipped`. Raises
    `DataError`, also if there is no image.
    """
    found, others = [], []
    for entry in _entries(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in image_suffixes() and _is(entry, "a file", "a link to a missing file"):
            found.append(entry.name)
        elif entry.name.lower() not in _IGNORED and not _is(entry, "a folder"):
            others.append(os.path.join(folder, entry.name))
    if not found:
        only = f", but {_kinds(others)}" if others else ""
        raise DataError(
            f"Every class folder must contain images: '{folder}' has none{only}. Add some, or "
            "remove the class."
        )
    if skipped is not None:
        skipped += sorted(others)
    return _as_text(folder, sorted(found))


def images_below(folder: Path) -> list[Path]:
    """Return the visible image files in a folder and in all folders below it, sorted. Raises
    `DataError`."""
    found: list[Path] = []
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        if _is(entry, "a folder"):
            found += images_below(folder / entry.name)
        elif os.path.splitext(entry.name)[1].lower() in image_suffixes():
            found.append(folder / entry.name)
    return found


def skipped_caveat(skipped: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence about files that `images_in` skipped, or nothing if there are none."""
    if not skipped:
        return ()
    number = f"{len(skipped):,} files are" if len(skipped) > 1 else "1 file is"
    return (
        f"{number} not used, because Pillow reads no {_kinds(skipped)}: the first is "
        f"'{printable(skipped[0])}'. Convert what should be used to JPEG or PNG.",
    )


def _kinds(paths: Iterable[str]) -> str:
    """What skipped files are, most frequent first: `.heic (12), .txt (1), named pipe (1)`."""
    counts = Counter(
        (os.path.splitext(path)[1].lower() or "file without a suffix")
        if (kind := kind_of(path)) == "a file"
        else kind.removeprefix("a ")
        for path in paths
    )
    return ", ".join(f"{kind} ({count:,})" for kind, count in counts.most_common(8))


def holds_anything(folder: Path) -> bool:
    """Return whether the folder exists and contains something visible."""
    try:
        return any(True for _ in _entries(folder))
    except DataError:
        return False


def read_list(file: Path, what: str = "A list of the data set") -> bytes:
    """Return the content of a list file; raises `DataError`."""
    try:
        return read_regular(file)
    except OSError as error:
        raise DataError(
            f"{what} must be readable: '{file}' is not ({error}). Put it there."
        ) from None


def read_lines(file: Path) -> list[str]:
    """Return the stripped lines of a list file that are not empty; raises `DataError`."""
    try:
        text = read_list(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"A list must be UTF-8: '{file}' is not ({error}). Restore it.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without what file managers and notebooks leave behind."""
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name not in _LEFT_BEHIND]
    except (OSError, ValueError) as error:
        reason = f"it is {kind_of(folder)}" if kind_of(folder) != "a folder" else str(error)
        raise DataError(
            f"A folder of the data set must exist and be readable: '{folder}' is not ({reason}). "
            "Put it there."
        ) from None


def _is(entry: os.DirEntry[str], *kinds: str) -> bool:
    """Whether an entry is of one of these kinds (see `kind_of`); only a link costs a `stat`."""
    if not entry.is_symlink():
        return ("a folder" in kinds and entry.is_dir()) or ("a file" in kinds and entry.is_file())
    found = kind_of(entry.path)
    if found == "a symbolic link that leads to itself":
        raise DataError(
            f"Links must lead to a file or a folder: '{entry.path}' is {found}. Remove it."
        )
    return found in kinds


def _as_text(folder: Path, names: list[str]) -> list[str]:
    """The names, if all can be hashed and stored as UTF-8; raises `DataError`."""
    for name in names:
        if found := unprintable(name):
            raise DataError(
                f"Names of files and folders must be printable UTF-8: {os.fsencode(name)!r} in "
                f"'{folder}' contains {found}. Rename it."
            )
    return names
