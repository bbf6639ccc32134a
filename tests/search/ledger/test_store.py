"""A ledger in a real PostgreSQL: the same promises, and a server that dies and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.ledger import store as study
from search.ledger.ledger import Ledger
from search.ledger.results import read_results
from search.ledger.store import (
    DatabaseStore,
    JournalStore,
    LedgerError,
    StudyStore,
    ledger_problems,
    look_at_study,
    open_store,
)
from search.ledger.study_lock import StudyLock
from spaces.registry import SPACES
from tests.servers import Postgresql, postgresql_programs
from trainables.methods.base import TaskFacts
from trainables.storage import LocalStorage

SPACE = SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit"))

needs_postgresql = pytest.mark.skipif(
    postgresql_programs() is None, reason="PostgreSQL's server is not installed"
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgresql]:
    server = Postgresql(tmp_path_factory.mktemp("postgresql") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.remove()


Open = Callable[..., Ledger]


@pytest.fixture
def open_ledger(database: Postgresql) -> Iterator[Open]:
    """Opens a folder's ledger; several may be open, as after a death that nobody has noticed."""
    stores = []

    def ledger(folder: Path, alone: bool = False) -> Ledger:
        stores.append(DatabaseStore(database.uri, str(folder)))
        if alone:
            stores[-1].take(lambda _: None)
        return Ledger(LocalStorage(folder), stores[-1], SPACE, "tpe", "asha", 0)

    yield ledger
    for store in stores:
        store.close()


def end_some(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        live = ledger.ask()
        values = [0.5 + 0.03 * ((5 * live.number + step) % 7) for step in (1, 2, 3)]
        ledger.report(live.number, values, {"val/accuracy": values[-1]})
        ledger.finish(live.number, "COMPLETE" if live.number % 3 else "PRUNED")


@needs_postgresql
def test_a_database_asks_what_a_journal_asks(open_ledger: Open, tmp_path: Path) -> None:
    """The same trials, also when every one is asked by another driver."""
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    sweep = LocalStorage(calm)
    end_some(Ledger(sweep, JournalStore(sweep, lambda: None), SPACE, "tpe", "asha", 0), 12)
    for _ in range(12):
        ledger = open_ledger(broken)
        left = ledger.ask()  # and the driver dies
        ledger.report(left.number, [0.1], {"val/accuracy": 0.1}) if left.number == 5 else None
        end_some(open_ledger(broken), 1)
    expected, found = (read_results(LocalStorage(folder)) for folder in (calm, broken))
    assert list(found) == list(range(12))
    assert [found[n].config for n in range(5)] == [expected[n].config for n in range(5)]
    trials = open_ledger(broken).frozen()
    assert [t.number for t in trials] == list(range(12))
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}


@needs_postgresql
def test_a_study_is_looked_at_while_it_is_written(
    database: Postgresql, open_ledger: Open, tmp_path: Path
) -> None:
    ledger = open_ledger(tmp_path)
    end_some(ledger, 2)
    live = ledger.ask()
    ledger.report(live.number, [0.25, 0.5], {"val/accuracy": 0.5})
    sweep = LocalStorage(tmp_path)
    trials = look_at_study(database.uri, sweep, str(tmp_path))
    assert [t.number for t in trials] == [0, 1, 2]
    assert trials[2].state == TrialState.RUNNING
    assert trials[2].intermediate_values == {1: 0.25, 2: 0.5}
    assert trials[2].params == live.trial.params
    assert look_at_study(database.uri, sweep, "another") == []
    with pytest.raises(LedgerError, match=r"127\.0\.0\.1:9"):
        look_at_study("postgresql://127.0.0.1:9/db", sweep, "x")


@needs_postgresql
def test_a_server_that_dies_is_waited_for(
    database: Postgresql, open_ledger: Open, tmp_path: Path
) -> None:
    """SIGKILL while trials are asked, reported and committed; the same driver goes on, and the
    study is still its own."""
    ledger = open_ledger(tmp_path, alone=True)
    done = threading.Event()

    def disturb() -> None:
        for pause in (0.3, 0.5, 0.7):
            if done.wait(pause):
                return
            database.kill()
            time.sleep(0.2)
            database.wait()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        ended = 0
        while thread.is_alive() or ended < 2:
            end_some(ledger, 1)
            ended += 1
    finally:
        done.set()
        thread.join()
    results = read_results(LocalStorage(tmp_path))
    assert len(results) >= 2
    assert list(results) == list(range(len(results)))
    assert not free(database, tmp_path)
    again = open_ledger(tmp_path)
    assert again.waiting == 0
    assert [t.number for t in again.frozen()] == list(results)
    assert {n: r.state for n, r in results.items()} == {
        t.number: t.state.name for t in again.frozen()
    }


@needs_postgresql
def test_a_server_that_stays_away_loses_nothing(
    database: Postgresql, open_ledger: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "PATIENCE", 1.0)
    ledger = open_ledger(tmp_path)
    end_some(ledger, 2)
    live = ledger.ask()
    ledger.report(live.number, [0.5], {"val/accuracy": 0.5})
    database.kill()
    try:
        with pytest.raises(LedgerError, match=r"has not answered for 1 s \(.*[Cc]onnection"):
            ledger.finish(live.number, "COMPLETE")
    finally:
        database.wait()
    assert list(read_results(LocalStorage(tmp_path))) == [0, 1, 2]  # committed all the same
    again = open_ledger(tmp_path)
    assert again.waiting == 0
    assert again.frozen()[2].state == TrialState.COMPLETE


def free(database: Postgresql, folder: Path) -> bool:
    """Whether a driver would get the study now."""
    lock = StudyLock(database.uri, str(folder))
    try:
        return lock.take()
    finally:
        lock.release()


@needs_postgresql
def test_a_study_is_one_drivers(
    database: Postgresql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the folder, on a host from which the original cannot be seen, is refused."""
    monkeypatch.setattr(study, "NOTICED_SECONDS", 0.5)
    said: list[str] = []

    def opened() -> StudyStore:
        sweep = LocalStorage(tmp_path)
        return open_store(database.uri, sweep, str(tmp_path), lambda: None, said.append)

    with closing(opened()):
        assert said == []
        with pytest.raises(UsageError, match="another's, which runs a copy of this sweep's folder"):
            opened()
        assert len(said) == 1
        with closing(DatabaseStore(database.uri, "another")) as other:
            other.take(said.append)
    with closing(opened()):
        assert len(said) == 1


@needs_postgresql
def test_a_driver_whose_study_was_taken_writes_no_more(
    database: Postgresql, open_ledger: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was away, and somebody else was there first when it came back."""
    ledger = open_ledger(tmp_path, alone=True)
    ledger.ask()
    database.kill()
    database.wait()
    monkeypatch.setattr(study, "PATIENCE", 1.0)
    other = StudyLock(database.uri, str(tmp_path))
    assert other.take()
    with pytest.raises(LedgerError, match="another driver writes the study"):
        ledger.ask()
    other.release()
    assert ledger.ask().number == 1


@needs_postgresql
def test_two_sweeps_share_a_database(open_ledger: Open, tmp_path: Path) -> None:
    for name in ("a", "b"):
        end_some(open_ledger(tmp_path / name), 2)
    for name in ("a", "b"):
        assert len(open_ledger(tmp_path / name).frozen()) == 2


@needs_postgresql
def test_a_database_that_lets_us_in_is_no_problem(database: Postgresql) -> None:
    assert ledger_problems(database.uri) == []
    assert ledger_problems("journal") == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://ada:secret@127.0.0.1:9/x", "'postgresql://ada@127.0.0.1:9/x' does not"),
        ("mysql://host/x", "must be journal or postgresql://USER@HOST/DATABASE, got 'mysql:"),
        ("jurnal", "got 'jurnal'"),
        ("postgresql://127.0.0.1:port/x", "does not"),
    ],
)
def test_what_cannot_be_a_ledger_is_one_clear_line(url: str, words: str) -> None:
    (problem,) = ledger_problems(url)
    assert words in problem
    assert "secret" not in problem
    assert "\n" not in problem


def test_passwords_are_neither_stored_nor_shown() -> None:
    config = SweepConfig(
        ledger="postgresql://u:secret@h/d",
        tracking_uri="http://u:secret@h:5000",
        storage="s3://key:secret@bucket/x?region=eu",
    )
    assert "secret" not in str(config.public().to_dict())
