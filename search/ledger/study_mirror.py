"""A copy of the Optuna study in a database, for `optuna-dashboard` and Optuna's own functions.

The sweep writes to it and never reads from it: the study itself is in memory, rebuilt from the
sweep's folder (see `study.py`). One thread brings the database up to date, so no trial waits for
it. After an outage it catches up; a database that was replaced meanwhile is filled again.
"""

from __future__ import annotations

import logging
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from trainables.core.credentials import shown

logger = logging.getLogger(__name__)

_PACKAGES = {
    "psycopg": "-e '.[postgresql]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
"""What to install for a driver whose package has another name."""
_CONNECT_SECONDS = 5
_LONGEST_WAIT = 5.0  # seconds between two attempts during an outage


class _ForeignTrialError(Exception):
    """The study has a trial that this mirror did not write, e.g. the last one of a driver that was
    killed while the database hung."""


class StudyMirror:
    """Keeps one study of a database like the sweep's study."""

    def __init__(
        self,
        url: str,
        name: str,
        directions: Sequence[str],
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        """`name` is the study's name in the database. `warn` gets one line per outage."""
        self._url, self._name, self._warn = url, name, warn
        self._directions = [StudyDirection[direction.upper()] for direction in directions]
        self._trials: dict[int, FrozenTrial] = {}
        self._stale: set[int] = set()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._storage: RDBStorage | None = None
        self._known: dict[int, FrozenTrial] = {}
        self._thread = threading.Thread(target=self._run, name="study-mirror", daemon=True)

    def start(self) -> None:
        """Begin to write. What the database holds of the study is kept if it fits the trials that
        were passed to `update` so far, else the study is deleted and written anew."""
        self._thread.start()

    def update(self, trial: FrozenTrial) -> None:
        """A trial is new or has changed; returns at once. Trials are added in order."""
        with self._changed:
            self._trials[trial.number] = trial
            self._stale.add(trial.number)
            self._changed.notify()

    def close(self, patience: float) -> int:
        """Write what is left, for at most so many seconds; returns the number of trials that the
        database lacks. The next start of the sweep adds them."""
        with self._changed:
            self._deadline = time.monotonic() + patience
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(patience)
        return len(self._stale)

    def _run(self) -> None:
        wait, warned = 0.1, False
        while self._wait_for_change():
            try:
                self._write_stale()
                wait, warned = 0.1, False
            except _ForeignTrialError:
                self._disconnect()  # the next connection finds the trial, and writes the study anew
            except Exception as error:  # whatever a driver raises: the sweep does not depend on it
                self._disconnect()
                if not warned:
                    self._warn(
                        f"The study storage '{shown(self._url)}' does not work ({reason(error)}). "
                        "The sweep continues and adds its trials as soon as it works again."
                    )
                warned = True
                with self._changed:
                    self._changed.wait_for(lambda: self._deadline is not None, wait)
                wait = min(2 * wait, _LONGEST_WAIT)
        self._disconnect()

    def _wait_for_change(self) -> bool:
        """Whether there is something to write, and time for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._stale or self._deadline is not None)
            return bool(self._stale) and (
                self._deadline is None or time.monotonic() < self._deadline
            )

    def _write_stale(self) -> None:
        if self._storage is None:
            self._connect()
        with self._changed:
            stale = sorted(self._stale)
        for number in stale:
            if self._deadline is not None and time.monotonic() > self._deadline:
                return
            trial = self._trials[number]
            self._write(trial)
            with self._changed:
                if self._trials[number] is trial:
                    self._stale.discard(number)

    def _connect(self) -> None:
        """Open the database and read into `_known` what it holds of the study."""
        storage = RDBStorage(sqlalchemy_url(self._url), engine_kwargs=_engine_options(self._url))
        found: list[FrozenTrial] = []
        try:
            study = storage.get_study_id_from_name(self._name)
        except KeyError:
            study = storage.create_new_study(self._directions, self._name)
        else:
            found = storage.get_all_trials(study, deepcopy=False)
            if storage.get_study_directions(study) != self._directions or not all(
                self._fits(trial) for trial in found
            ):
                storage.delete_study(study)
                study = storage.create_new_study(self._directions, self._name)
                found = []
        self._storage, self._study = storage, study
        self._known = {trial.number: trial for trial in found}
        self._ids = {trial.number: trial._trial_id for trial in found}
        with self._changed:
            self._stale |= self._trials.keys()

    def _fits(self, theirs: FrozenTrial) -> bool:
        """Whether a trial in the database can still become the one of the sweep."""
        ours = self._trials.get(theirs.number)
        if ours is None:
            return False
        if theirs.state.is_finished():
            same = (theirs.state, theirs.values, theirs.params, theirs.intermediate_values)
            return same == (ours.state, ours.values, ours.params, ours.intermediate_values)
        return (
            theirs.params.items() <= ours.params.items()
            and theirs.intermediate_values.items() <= ours.intermediate_values.items()
            and (theirs.state == TrialState.RUNNING or ours.state != TrialState.RUNNING)
        )

    def _write(self, ours: FrozenTrial) -> None:
        storage, number = self._storage, ours.number
        assert storage is not None
        theirs = self._known.get(number)
        if theirs is None:
            self._ids[number] = storage.create_new_trial(self._study, template_trial=ours)
            if storage.get_trial_number_from_id(self._ids[number]) != number:
                raise _ForeignTrialError
        elif not theirs.state.is_finished():
            trial = self._ids[number]
            for name, distribution in ours.distributions.items():
                if name not in theirs.params:
                    internal = distribution.to_internal_repr(ours.params[name])
                    storage.set_trial_param(trial, name, internal, distribution)
            for key, value in ours.system_attrs.items():
                if theirs.system_attrs.get(key) != value:
                    storage.set_trial_system_attr(trial, key, value)
            for step, value in ours.intermediate_values.items():
                if step not in theirs.intermediate_values:
                    storage.set_trial_intermediate_value(trial, step, value)
            if ours.state != theirs.state:
                storage.set_trial_state_values(trial, ours.state, ours.values)
        self._known[number] = ours

    def _disconnect(self) -> None:
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()
        self._storage = None


def study_storage_problems(url: str) -> list[str]:
    """Why a study cannot be written to this address, whether or not the database answers now."""
    rule = "--study-storage must be a database URL of SQLAlchemy, e.g. sqlite:///study.db or "
    rule += "postgresql://USER@HOST/DATABASE"
    try:
        urllib.parse.urlsplit(url)
        parsed = _parsed(url)
        dialect = parsed.get_dialect()
        if "\0" in url or not 0 < (parsed.port or 1) < 1 << 16:
            raise ValueError("a part of it is out of range")
    except (SQLAlchemyError, NoSuchModuleError, ValueError) as error:
        return [f"{rule}, got '{shown(url)}' ({shown(reason(error))})."]
    try:
        dialect.import_dbapi()
    except ImportError as error:
        module = error.name or parsed.drivername
        package = _PACKAGES.get(module, module)
        return [f"--study-storage '{shown(url)}' needs a driver: pip install {package}."]
    return _sqlite_problems(url, parsed) if parsed.get_backend_name() == "sqlite" else []


def _sqlite_problems(url: str, parsed: URL) -> list[str]:
    if not parsed.database or parsed.database == ":memory:":
        return [f"--study-storage must name a file, got '{url}': use e.g. sqlite:///study.db."]
    path = Path(parsed.database).absolute()
    try:
        if not path.parent.is_dir():
            return [
                f"--study-storage must be a file in an existing folder, and '{path.parent}' is "
                f"none: create it, or use another file than '{path}'."
            ]
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return [f"--study-storage must be a regular file, and '{path}' is none: use another."]
    except (OSError, ValueError) as error:
        return [f"--study-storage must be a file that can be written, got '{path}' ({error})."]
    return []


def study_storage_notice(url: str) -> str:
    """A line for the user if the database does not answer now, else empty. Takes seconds at most,
    and changes nothing."""
    if _parsed(url).get_backend_name() == "sqlite":
        return ""
    engine = create_engine(_parsed(url), connect_args=_engine_options(url)["connect_args"])
    try:
        engine.connect().close()
    except Exception as error:  # whatever a driver raises
        return (
            f"The study storage '{shown(url)}' does not answer ({shown(reason(error))}). The sweep "
            "runs without it and adds its trials as soon as it answers."
        )
    finally:
        engine.dispose()
    return ""


def sqlalchemy_url(url: str) -> str:
    """The address as SQLAlchemy takes it, with the driver that this package installs."""
    return _parsed(url).render_as_string(hide_password=False)


def reason(error: BaseException) -> str:
    """The first cause of an error in one line, without the statement that failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _parsed(url: str) -> URL:
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _engine_options(url: str) -> dict[str, Any]:
    """Connections that are tested before use, and that notice within seconds a server's end."""
    parsed = _parsed(url)
    connect: dict[str, Any] = {}
    if parsed.get_backend_name() in ("postgresql", "mysql", "mariadb"):
        connect["connect_timeout"] = _CONNECT_SECONDS
    if parsed.drivername.startswith("postgresql"):
        connect |= {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3}
    return {"pool_pre_ping": True, "connect_args": connect}
