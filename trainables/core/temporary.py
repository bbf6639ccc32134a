"""Temporary folders that are removed even if their process was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

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
