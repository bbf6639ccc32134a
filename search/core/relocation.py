"""Removing and moving a sweep's folder, so that after a crash the same command completes it.

The caller owns the folder (see `lock.py`). While a folder holds a part of a sweep, it has
`unfinished.json` instead of `sweep.json`, and every other command refuses it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial

from search.core.lock import CLAIMS
from search.core.problems import UsageError
from search.core.sweep_folder import SWEEP_FILE, UNFINISHED_FILE, SweepFolder
from trainables.core.credentials import without_password
from trainables.core.files import flush_folder
from trainables.core.storage import LocalStorage, Storage, StorageError

_TRIALS = "trials"


def begin_removal(sweep: SweepFolder, command: str) -> None:
    """Mark a sweep as one that `command` removes; a damaged one, too. Raises `StorageError`."""
    if not sweep.exists:
        return
    try:
        record = sweep.record
    except UsageError:
        sweep.mark_unfinished(None, command)
    else:
        sweep.mark_unfinished(record, command)


def finish_removal(sweep: SweepFolder) -> None:
    """Remove what is left of a marked sweep, the mark last; raises `StorageError`."""
    files = sweep.files
    for name in files.folders():
        if name not in (CLAIMS, _TRIALS):
            files.child(name).remove()
    for name in files.files():
        if "/" not in name and name != UNFINISHED_FILE:
            files.delete(name)
    files.child(_TRIALS).remove()
    files.remove()


def move_folder(sweep: SweepFolder, target: SweepFolder, command: str) -> None:
    """Move a sweep to another folder of the same storage: at once on a disk, by copying in a
    bucket. Raises `StorageError`."""
    if isinstance(sweep.files, LocalStorage) and isinstance(target.files, LocalStorage):
        source, destination = sweep.files.root, target.files.root
        try:
            os.rename(source, destination)  # refuses a folder that is not empty
            flush_folder(destination.parent)
        except OSError as error:
            raise StorageError(f"'{destination}': {error.strerror or error}") from error
        target.files.child(CLAIMS).remove()
        return
    left = sweep.unfinished()
    record = sweep.record if left is None else left.sweep
    assert record is not None
    if left is None:
        target.mark_unfinished(record, command)
        _copy(sweep.files, target.files)
        sweep.mark_unfinished(record, command)
    target.write_record(replace(record, location=without_password(target.files.location)))
    target.files.delete(UNFINISHED_FILE)
    finish_removal(sweep)


def rename_has_begun(sweep: SweepFolder, target: SweepFolder, command: str) -> bool:
    """Whether `command` was interrupted while it moved a sweep to `target`; raises
    `UsageError`."""
    if (left := sweep.unfinished()) is not None:
        return left.command == command
    copied = target.unfinished()
    return copied is not None and copied.sweep is not None and copied.sweep.id == sweep.id


def _copy(source: Storage, target: Storage) -> None:
    for name in source.files():
        if not name.startswith((f"{CLAIMS}/", SWEEP_FILE, UNFINISHED_FILE)):
            with source.as_local_file(name) as path:
                target.write_with(name, partial(shutil.copyfile, path))
