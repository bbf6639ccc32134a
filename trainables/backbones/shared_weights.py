"""Local weight files for workers on other machines, through the sweep's storage, once per node.

Shared files are named by their content, so a node never trains with another file of the same path.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from trainables.backbones.layout import split_masks, split_path
from trainables.core.files import cache_folder
from trainables.core.storage import Storage, StorageError, open_storage
from trainables.core.store import locked


def share_weights(spec: str, sweep: Storage) -> str:
    """Copy the files or folders that `spec` names into the sweep's folder unless they are there.

    Returns the location of the copy; empty if `spec` names no file on this machine, e.g. a model
    that is part of the project or that every node downloads itself.
    """
    files = dict(_files([path for path in _paths_in(spec) if path.exists()]))
    if not files:
        return ""
    copy = sweep.child(f"weights/{_digest(files)}")
    there = set(copy.files())
    for name, file in files.items():
        if name not in there:
            copy.write_with(name, partial(shutil.copyfile, file))
    return copy.location


def fetch_weights(spec: str, location: str) -> str:
    """`spec` with its paths replaced by this node's copies of the files shared at `location`.

    The first process of a node that calls this fetches them, others wait. Raises `StorageError`.
    """
    if not location:
        return spec
    digest = location.partition("?")[0].rstrip("/").rpartition("/")[2]
    cache = _cache()
    home = cache / digest
    with locked(home):
        if not home.exists():
            _fetch(location, digest, home)
    paths = _paths_in(spec)
    homes = [home] if len(paths) == 1 else [home / str(index) for index in range(len(paths))]
    copies = {str(path): next(own.iterdir()) for path, own in zip(paths, homes, strict=True)}
    return "".join(f"{head}{copies.get(path, path)}" for head, path in _parts(spec))


def _fetch(location: str, digest: str, home: Path) -> None:
    shared = open_storage(location)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as folder:
        whole = Path(folder) / digest
        for name in shared.files():
            target = whole / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with shared.as_local_file(name) as source:
                shutil.copyfile(source, target)
        files = {str(p.relative_to(whole)): p for p in whole.rglob("*") if p.is_file()}
        if _digest(files) != digest:
            raise StorageError(f"'{location}': the weights there are damaged")
        whole.rename(home)


def _cache() -> Path:
    folder = cache_folder() / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parts(spec: str) -> list[tuple[str, str]]:
    """What precedes each path, and the path, which may be a mere name."""
    if masked := split_masks(spec):
        (head, path), *others = _parts(masked[1])
        return [("", masked[0]), (f"@{head}", path), *others]
    return [split_path(spec)]


def _paths_in(spec: str) -> list[Path]:
    return [Path(path) for _, path in _parts(spec) if Path(path).is_absolute()]


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Names of the shared files: below the last part of the path, and below the path's number if
    there are several."""
    for index, path in enumerate(paths):
        top = f"{index}/{path.name}" if len(paths) > 1 else path.name
        if path.is_file():
            yield top, path
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield f"{top}/{file.relative_to(path).as_posix()}", file


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        with open(files[name], "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
