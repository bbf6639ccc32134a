"""Local weight files for workers on other machines: through the sweep's storage, once a node.

What is shared is named by its content, so a node can never train with another file that happens to
lie under the same path.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from trainables.cache import cache_folder
from trainables.storage import Storage, StorageError, open_storage


def share_weights(spec: str, sweep: Storage) -> str:
    """Copy the file or folder that `spec` names into the sweep's folder, if it is not there yet.

    Returns the location of the copy; empty where `spec` names nothing on this machine, e.g. a
    model that is part of the project or is downloaded by every node itself.
    """
    path = _path_in(spec)
    if path is None:
        return ""
    files = dict(_files(path))
    copy = sweep.child(f"weights/{_digest(files)}")
    there = set(copy.files())
    for name, file in files.items():
        if name not in there:
            copy.write_by(name, partial(_copy, file))
    return copy.location


def fetch_weights(spec: str, location: str) -> str:
    """`spec` with its path replaced by this node's own copy of what was shared at `location`.

    The first process of a node that asks fetches it, the others wait. Raises `StorageError`.
    """
    if not location:
        return spec
    digest = location.partition("?")[0].rstrip("/").rpartition("/")[2]
    cache = _cache()
    home = cache / digest
    with open(cache / f".{digest}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            _fetch(location, digest, home)
    path = _written_path(spec)
    (top,) = home.iterdir()
    return f"{spec[: len(spec) - len(path)]}{top}"


def _fetch(location: str, digest: str, home: Path) -> None:
    shared = open_storage(location)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as folder:
        whole = Path(folder) / digest
        for name in shared.files():
            target = whole / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with shared.local_copy(name) as source:
                shutil.copyfile(source, target)
        files = {str(p.relative_to(whole)): p for p in whole.rglob("*") if p.is_file()}
        if _digest(files) != digest:
            raise StorageError(f"'{location}': the weights there are damaged")
        whole.rename(home)


def _cache() -> Path:
    folder = cache_folder() / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _written_path(spec: str) -> str:
    head, colon, rest = spec.partition(":")
    return rest if colon else head


def _path_in(spec: str) -> Path | None:
    path = Path(_written_path(spec))
    return path if path.is_absolute() and path.exists() else None


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Names under which the files are shared: below the last part of the path."""
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield f"{path.name}/{file.relative_to(path).as_posix()}", file


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        with open(files[name], "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
