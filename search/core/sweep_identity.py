"""Which sweep a folder holds: a folder that was moved the same one, a copy another one."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from typing import Any

from search.tracking.uploader import put_away_outboxes
from trainables.credentials import without_password
from trainables.storage import Storage, StorageError, is_same_folder, open_storage

logger = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"
_PROBE_SECONDS = 5.0


def own_id(sweep: Storage, record: Mapping[str, Any]) -> str:
    """The id of the sweep in this folder, whose `sweep.json` holds `record`. For the owner of the
    folder; raises `StorageError`.

    The record says where the id was given. A copy of a folder that is still there gets an id of its
    own, or MLflow would show the trials of both as those of one sweep; it has told MLflow nothing
    yet, so its outboxes are put away.
    """
    known, here, home = str(record["id"]), without_password(sweep.location), record.get("location")
    if home == here:
        return known
    found = known
    if home is not None and _is_original(home, known, sweep):
        logger.warning("'%s' is a copy of '%s': a sweep of its own from now on", here, home)
        put_away_outboxes(sweep)
        found = uuid.uuid4().hex
    write_record(sweep, {**record, "id": found, "location": here})
    return found


def write_record(sweep: Storage, record: Mapping[str, Any]) -> None:
    """Make `record` the content of `sweep.json`; raises `StorageError`."""
    sweep.write(SWEEP_FILE, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def _is_original(home: str, known: str, sweep: Storage) -> bool:
    """Whether the folder that was given the id is still there, and another one. One that cannot be
    reached from here counts as gone."""
    try:
        original = open_storage(home, _PROBE_SECONDS)
        record = json.loads(original.read(SWEEP_FILE))
        return record["id"] == known and not is_same_folder(sweep, original)
    except (FileNotFoundError, StorageError, ValueError, KeyError, TypeError):
        return False
