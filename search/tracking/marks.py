"""Which runs MLflow holds to their end: one mark per run, in a file of the sweep's folder.

A mark only saves work: without it the run is compared with MLflow again, which changes nothing. So
the file is not flushed to the disk, and a lost or damaged line does no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from search.core.config import SweepConfig
from search.core.results import Result
from search.tracking.uri import absolute_uri, without_user
from trainables.core.files import cache_folder, read_regular, remove_file
from trainables.core.storage import LocalStorage, Storage

FOLDER = "tracking"
SWEEP_RUN = -1
"""Stands for the sweep's own run among the numbers of trials; it ends with its last trial."""


@dataclass(frozen=True)
class Mark:
    """A run that MLflow holds to its end, or will never accept."""

    ended: float
    """When it ended, Unix time: a trial that is run again ends again."""
    refused: str = ""
    """MLflow's reason, if it will never accept the run."""


class Marks:
    """The marks of one sweep for one experiment of one MLflow. For the owner of the folder."""

    def __init__(self, uri: str, experiment: str, identity: str, storage: Storage) -> None:
        self.path = _path(uri, experiment, identity, storage)

    def read(self) -> dict[int, Mark]:
        """The marks by trial; later lines win. Lines that cannot be read are skipped."""
        found: dict[int, Mark] = {}
        try:
            lines = read_regular(self.path).splitlines()
        except OSError:
            return {}
        for line in lines:
            try:
                plain = json.loads(line)
                found[int(plain["trial"])] = Mark(float(plain["ended"]), str(plain["refused"]))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                continue
        return found

    def add(self, number: int, mark: Mark) -> None:
        """Append a mark; raises `OSError`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = {"trial": number, "ended": mark.ended, "refused": mark.refused}
        line = json.dumps(plain).encode() + b"\n"
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(file).st_size
            # A line that a power cut left unfinished must not swallow this one.
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, b"\n" * torn + line)
        finally:
            os.close(file)

    def clear(self) -> None:
        """Forget all marks; raises `OSError`."""
        remove_file(self.path)

    def undelivered(self, results: Mapping[int, Result]) -> list[int]:
        """The trials that have ended and have no mark for it, and `SWEEP_RUN` if it has none."""
        marks = self.read()
        ends = {number: result.ended for number, result in results.items()}
        if ends:
            ends[SWEEP_RUN] = max(ends.values())
        return [n for n in sorted(ends) if n not in marks or marks[n].ended != ends[n]]

    def refused(self) -> list[int]:
        """The runs that MLflow will never accept."""
        return sorted(number for number, mark in self.read().items() if mark.refused)


def open_marks(uri: str, config: SweepConfig, identity: str, storage: Storage) -> Marks:
    """The marks of the trials that MLflow holds."""
    return Marks(uri, config.experiment, identity, storage)


def _path(uri: str, experiment: str, identity: str, storage: Storage) -> Path:
    """In the sweep's folder, or in this machine's cache if that is not on a disk. Holds no
    password. A copy of a sweep has another identity, so it begins without marks."""
    address = without_user(absolute_uri(uri)).rstrip("/")
    name = hashlib.sha256("\0".join((address, experiment, identity)).encode()).hexdigest()[:16]
    if isinstance(storage, LocalStorage):
        return storage.root / FOLDER / f"{name}.jsonl"
    return cache_folder() / FOLDER / f"{name}.jsonl"
