"""A sweep's folder: what it holds, read in one place.

    sweep = find_sweep("my-sweep", "sweeps")   # UsageError if there is none
    sweep.record      # sweep.json: id, config, fingerprints, val_images, versions
    sweep.config      # its configuration, with the name and storage that it has now
    sweep.results()   # {number: Result} of every trial that has ended
    sweep.issued()    # {number: IssuedTrial} of every trial that has not
    sweep.owner()     # the driver that runs it, or None
    sweep.files       # the folder itself, a `Storage`

`sweep_folders(storage)` lists all sweeps of a storage. Every reader raises `UsageError` with one
line that names the file and the field, and `StorageError` if the folder cannot be read. Nothing is
changed by reading. Only the folder's owner (see `lock.py`) calls `write_record` and `claim_id`.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from search.core import sweep_file
from search.core.config import SweepConfig
from search.core.lock import running
from search.core.problems import UsageError
from search.core.results import (
    IssuedTrial,
    Result,
    read_issued,
    read_results,
    read_trials,
    trial_folder,
)
from trainables.core.credentials import shown, without_password
from trainables.core.records import Positive, RecordError, read_record, read_version
from trainables.core.storage import (
    PATIENCE,
    Storage,
    StorageError,
    is_same_folder,
    join,
    open_storage,
    split,
)

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of `sweep.json`."""
SWEEP_FILE = "sweep.json"
EVALUATION_FILE = "evaluation.json"
UNFINISHED_FILE = "unfinished.json"
"""Replaces `sweep.json` in a folder that is being removed, copied or moved."""
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class SweepRecord:
    """The content of `sweep.json`."""

    id: str
    """Unique id, created with the sweep. Moving the folder keeps it, a copy gets another one."""
    config: SweepConfig
    """The configuration, without passwords. `name` and `storage` are those at the last start."""
    fingerprints: dict[str, str]
    """Fingerprints of the backbone, the few-shot pools and the draws."""
    location: str = ""
    """Where the folder was when it got its id."""
    val_images: Positive | None = None
    """Number of validation images behind a trial's value."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the main packages."""
    format: int = FORMAT
    """Version of this record."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Unfinished:
    """The content of `unfinished.json`."""

    command: str
    """The command that completes what was interrupted, without options: `rename first second`."""
    sweep: SweepRecord | None
    """The content of the sweep's `sweep.json`; None if that cannot be read."""


class SweepFolder:
    """The files of one sweep; see the module's docstring."""

    def __init__(self, files: Storage, storage: str | None = None) -> None:
        """`storage` is the location of the folder that holds this one, as the user wrote it."""
        self.files = files
        parent, self.name = split(files.location)
        self.storage = parent if storage is None else storage

    @property
    def exists(self) -> bool:
        """Whether there is a `sweep.json`, readable or not."""
        return self.files.exists(SWEEP_FILE)

    @property
    def has_trials(self) -> bool:
        """Whether a trial was ever issued here."""
        return "trials" in self.files.folders()

    @property
    def has_evaluation(self) -> bool:
        """Whether there is an evaluation, readable or not."""
        return self.files.exists(EVALUATION_FILE)

    @cached_property
    def record(self) -> SweepRecord:
        """The content of `sweep.json`, read once."""
        try:
            return self._read_record()
        except FileNotFoundError:
            self.check_finished()
            raise UsageError([_unknown(self.storage, self.name)]) from None
        except RecordError as error:
            raise UsageError(
                [
                    "A sweep's description must be readable, and "
                    f"'{shown(join(self.files.location, SWEEP_FILE))}' is not: {error}. Restore "
                    "the file from a copy, or start another sweep with --name."
                ]
            ) from error
        except StorageError as error:
            raise UsageError(
                [f"A sweep's folder must be readable, and it is not: {error}."]
            ) from error

    @property
    def id(self) -> str:
        """The sweep's unique id, from its record."""
        return self.record.id

    @property
    def config(self) -> SweepConfig:
        """The sweep's configuration, with the name and storage that its folder has now."""
        return self.located(self.record.config)

    def located(self, config: SweepConfig) -> SweepConfig:
        """A configuration with this folder's name and storage."""
        return replace(config, name=self.name, storage=self.storage)

    def results(self, methods: bool = True) -> dict[int, Result]:
        """Every trial that has ended, by number; `methods` as in `read_results`."""
        return read_results(self.files, methods)

    def issued(self) -> dict[int, IssuedTrial]:
        """Every trial that was issued and has not ended, by number."""
        return read_issued(self.files)

    def trials(self) -> tuple[dict[int, Result], dict[int, IssuedTrial]]:
        """Both, read in one pass."""
        return read_trials(self.files)

    def trial(self, number: int) -> Storage:
        """The folder of a trial."""
        return self.files.child(trial_folder(number))

    def unfinished(self) -> Unfinished | None:
        """The command that was interrupted while it removed or renamed this sweep, or None."""
        try:
            return (
                None if self.exists else read_record(Unfinished, self.files.read(UNFINISHED_FILE))
            )
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise UsageError(
                [
                    f"'{shown(join(self.files.location, UNFINISHED_FILE))}' must be readable, and "
                    f"is not: {error}. Remove the folder, which holds parts of a sweep."
                ]
            ) from error

    def check_finished(self) -> None:
        """Raises `UsageError` if a command was interrupted while it removed or renamed this
        sweep."""
        if (left := self.unfinished()) is not None:
            raise UsageError(
                [
                    f"A sweep must be complete, and '{self.name}' is partly removed or renamed. "
                    "Run the interrupted command again, with the same options: "
                    f"python -m search.{left.command}"
                ]
            )

    def mark_unfinished(self, record: SweepRecord | None, command: str) -> None:
        """Replace `sweep.json` until `command` has finished; raises `StorageError`."""
        text = json.dumps(asdict(Unfinished(command, record)), indent=1, allow_nan=False)
        self.files.write(UNFINISHED_FILE, text.encode())
        self.files.delete(SWEEP_FILE)
        self.__dict__.pop("record", None)

    def owner(self) -> str | None:
        """The driver that runs the sweep, or None; see `lock.running`."""
        return running(self.files)

    def write_record(self, record: SweepRecord) -> None:
        """Create or replace `sweep.json`, and `sweep.yaml` for people; raises `StorageError`."""
        self.files.write(sweep_file.NAME, sweep_file.sweep_text(record.config).encode())
        text = json.dumps(record.to_dict(), indent=1, allow_nan=False) + "\n"
        self.files.write(SWEEP_FILE, text.encode())
        self.__dict__["record"] = record

    def claim_id(self) -> str:
        """Return the sweep's id; a copied folder gets a new one.

        The record says where the id was created. If that folder is still there and is another one,
        this folder is a copy: MLflow would show the trials of both as those of one sweep.
        Raises `StorageError`.
        """
        record, here = self.record, without_password(self.files.location)
        if record.location == here:
            return record.id
        if record.location and self._is_original(record.location):
            logger.warning(
                "'%s' is a copy of '%s': it is a new sweep from now on", here, record.location
            )
            record = replace(record, id=uuid.uuid4().hex)
        self.write_record(replace(record, location=here))
        return record.id

    def _read_record(self) -> SweepRecord:
        return read_version(SweepRecord, self.files.read(SWEEP_FILE), FORMAT)

    def _is_original(self, location: str) -> bool:
        """Whether the folder that was given the id is still there, and another one. A folder that
        cannot be reached from here counts as gone."""
        try:
            original = SweepFolder(open_storage(location, _PROBE_SECONDS))
            same_id = original.record.id == self.record.id
            return same_id and not is_same_folder(self.files, original.files)
        except (FileNotFoundError, StorageError, UsageError):
            return False


def find_sweep(name: str, storage: str, patience: float = PATIENCE) -> SweepFolder:
    """The sweep of this name in a storage location; raises `UsageError` if there is none, and
    `StorageError` if the storage cannot be opened. A bucket that does not answer is an error after
    seconds; `patience` is for the requests that follow."""
    location = join(storage, name)
    found = SweepFolder(open_storage(location, min(patience, _PROBE_SECONDS)), storage)
    if not found.exists and not found.has_trials and found.unfinished() is None:
        raise UsageError([_unknown(storage, name)])
    return SweepFolder(open_storage(location, patience), storage)


def sweep_folders(storage: str, patience: float = _PROBE_SECONDS) -> list[SweepFolder]:
    """Every sweep in a storage location, by name, readable or not; other folders are skipped.
    Raises `StorageError`."""
    place = open_storage(storage, patience)
    found = [SweepFolder(place.child(name), storage) for name in place.folders()]
    return [sweep for sweep in found if _may_be_sweep(sweep)]


def _may_be_sweep(sweep: SweepFolder) -> bool:
    """Whether a folder is a sweep, or cannot be read."""
    try:
        files = sweep.files
        return sweep.exists or sweep.has_trials or files.exists(UNFINISHED_FILE)
    except StorageError:
        return True


def _unknown(storage: str, name: str) -> str:
    try:
        known = [sweep.name for sweep in sweep_folders(storage, _PROBE_SECONDS)]
    except StorageError:
        known = []
    there = f"There are: {', '.join(known)}." if known else "There is none yet."
    return f"There is no sweep '{name}' in '{shown(storage)}'. {there}"
