"""Where the study is kept: a journal in the sweep's folder, or a PostgreSQL database of a team."""

from __future__ import annotations

import time
import urllib.parse
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Any, Protocol, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial

from search.core.problems import StoppedError, UsageError
from search.ledger.journal import DAMAGED, Journal, JournalView
from search.ledger.study_lock import CONNECT_SECONDS, NOTICED_SECONDS, StudyLock
from trainables.credentials import without_password
from trainables.storage import Storage

T = TypeVar("T")

JOURNAL_LEDGER = "journal"
"""The ledger's address where it is the journal in the sweep's folder."""
PATIENCE = 60.0
"""Seconds for which a database that fails is asked again."""


class LedgerError(StoppedError):
    """The ledger's database does not answer."""


class StudyStore(Protocol):
    """A place for Optuna's study."""

    storage: BaseStorage
    """As Optuna knows it."""
    name: str
    """Name of the study in it."""
    notice: str
    """What a person should know of its state, else empty."""

    def together(self) -> AbstractContextManager[None]:
        """What is written in here may be written at once at the end."""

    def with_retries(self, act: Callable[[], T]) -> T:
        """Do it, again if need be: `act` must stand being repeated. Raises `LedgerError`."""

    def close(self) -> None:
        """Let go of connections."""


class JournalStore:
    """A journal that belongs to the sweep's owner: it fails only with the folder it is in."""

    def __init__(self, sweep: Storage, guard: Callable[[], None]) -> None:
        self._journal = Journal(sweep, guard)
        self.storage: BaseStorage = _replayed(self._journal)
        self.name = "sweep"
        self.notice = ""
        if lost := self._journal.lost:
            self.notice = (
                f"The ledger's last {lost} lines were damaged and are put away in {DAMAGED}; "
                "finished trials are restored from their results."
            )

    def together(self) -> AbstractContextManager[None]:
        """See `StudyStore`."""
        return self._journal.together()

    def with_retries(self, act: Callable[[], T]) -> T:
        """See `StudyStore`."""
        return act()

    def close(self) -> None:
        """See `StudyStore`. There are none."""


class MemoryStore:
    """A study that is gone with its process: what a sweep would ask, without a sweep."""

    def __init__(self) -> None:
        self.storage: BaseStorage = InMemoryStorage()
        self.name = "sweep"
        self.notice = ""

    def together(self) -> AbstractContextManager[None]:
        """See `StudyStore`."""
        return nullcontext()

    def with_retries(self, act: Callable[[], T]) -> T:
        """See `StudyStore`."""
        return act()

    def close(self) -> None:
        """See `StudyStore`."""


class _TakenError(Exception):
    """The study's lock is another driver's."""


class DatabaseStore:
    """A study in PostgreSQL. A server that is away is waited for."""

    def __init__(self, url: str, name: str) -> None:
        """Raises `LedgerError` where the database cannot be used."""
        import psycopg
        from sqlalchemy.exc import SQLAlchemyError

        self._url = url
        known = (SQLAlchemyError, psycopg.Error, optuna.exceptions.StorageInternalError)
        self._failures = (*known, _TakenError)
        self._lock: StudyLock | None = None
        self.name = name
        self.notice = ""
        self._database = self.with_retries(lambda: _connect(url))
        self.storage: BaseStorage = get_storage(self._database)  # remembers what has ended

    def take(self, say: Callable[[str], None]) -> None:
        """Keep all other drivers from the study until this store is closed.

        `say` is told, in one line, when one has to be waited for: the server need not know yet that
        it is dead. Raises `UsageError` while it lives, and `LedgerError`.
        """
        lock = StudyLock(_libpq(self._url), self.name)
        deadline = time.monotonic() + NOTICED_SECONDS
        told = False
        try:
            while not self.with_retries(lock.take):
                if time.monotonic() > deadline:
                    raise UsageError(
                        [
                            f"One driver at a time may write a study, and '{self.name}' in "
                            f"{without_password(self._url)} is another's, which runs a copy of "
                            "this sweep's folder. Wait for it, stop it, or start another sweep "
                            "with --name."
                        ]
                    )
                if not told:
                    say(
                        f"Waiting up to {NOTICED_SECONDS:.0f} s to see whether another driver "
                        "still writes this sweep's study."
                    )
                told = True
                time.sleep(0.2)
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def together(self) -> AbstractContextManager[None]:
        """See `StudyStore`. Each call of the database is a transaction of its own."""
        return nullcontext()

    def with_retries(self, act: Callable[[], T]) -> T:
        """See `StudyStore`."""
        deadline, wait = time.monotonic() + PATIENCE, 0.1
        while True:
            try:
                if self._lock is not None and not self._lock.take():
                    raise _TakenError("another driver writes the study")
                return act()
            except self._failures as error:
                if time.monotonic() + wait > deadline:
                    raise LedgerError(
                        f"the ledger at {without_password(self._url)} has not answered for "
                        f"{PATIENCE:.0f} s ({reason(error)})"
                    ) from error
            time.sleep(wait)
            wait = min(2 * wait, 5.0)

    def close(self) -> None:
        """See `StudyStore`."""
        if self._lock is not None:
            self._lock.release()
        self._database.remove_session()
        self._database.engine.dispose()


def open_store(
    url: str, sweep: Storage, name: str, guard: Callable[[], None], say: Callable[[str], None]
) -> StudyStore:
    """The store that a ledger's address means, for the owner of the sweep; `name` is the study's in
    a database.

    `guard` raises where the sweep has another owner. `say` is told when another driver has to be
    waited for. Raises `UsageError` where one has the study, and `LedgerError`.
    """
    if url == JOURNAL_LEDGER:
        return JournalStore(sweep, guard)
    with ExitStack() as stack:
        store = stack.enter_context(closing(DatabaseStore(url, name)))
        store.take(say)
        stack.pop_all()
    return store


def look_at_study(url: str, sweep: Storage, name: str) -> list[FrozenTrial]:
    """The study's trials as they are now, also while a driver runs it; none where it has no study.

    A journal is read and never written. Raises `LedgerError` for a database that does not answer,
    after seconds, and `StorageError`.
    """
    if url == JOURNAL_LEDGER:
        return _trials(_replayed(JournalView(sweep)), "sweep")
    if problems := ledger_problems(url):
        raise LedgerError(problems[0])
    with closing(DatabaseStore(url, name)) as store:
        return _trials(store.storage, name)


def _replayed(journal: JournalView) -> BaseStorage:
    """What Optuna makes of the journal, up to the first entry of which it can make nothing: without
    a checksum, a damaged one may still look like an entry."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return JournalStorage(journal)
        except Exception:  # whatever foreign content makes it raise
            journal.cut()
            return JournalStorage(journal)


def _trials(storage: BaseStorage, name: str) -> list[FrozenTrial]:
    try:
        return storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    except KeyError:
        return []


def ledger_problems(url: str) -> list[str]:
    """Whether a ledger can be kept there: the broken rule, or nothing. Waits for seconds only."""
    if url == JOURNAL_LEDGER:
        return []
    shown = without_password(url)
    if urllib.parse.urlsplit(url).scheme.partition("+")[0] not in ("postgresql", "postgres"):
        return [
            f"--ledger must be {JOURNAL_LEDGER} or postgresql://USER@HOST/DATABASE, got '{shown}'."
        ]
    try:
        import psycopg
    except ImportError:
        return [
            "--ledger postgresql://... needs the psycopg package: "
            "pip install 'fewshot-clip-search[postgresql]'."
        ]
    try:
        psycopg.connect(_libpq(url), connect_timeout=CONNECT_SECONDS).close()
    except (psycopg.Error, ValueError) as error:
        return [
            f"--ledger must be a PostgreSQL database that lets us in, and '{shown}' does not "
            f"({reason(error)}). Start it, correct the address, or give the password in "
            "PGPASSWORD or ~/.pgpass."
        ]
    return []


def reason(error: BaseException) -> str:
    """An error in one line, without what was being sent."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _libpq(url: str) -> str:
    return urllib.parse.urlsplit(url)._replace(scheme="postgresql").geturl()


def _connect(url: str) -> RDBStorage:
    options: dict[str, Any] = {
        "pool_pre_ping": True,  # a connection that the server's restart has cut is not used
        "connect_args": {"connect_timeout": CONNECT_SECONDS},
    }
    address = urllib.parse.urlsplit(url)._replace(scheme="postgresql+psycopg").geturl()
    return RDBStorage(address, engine_kwargs=options)
