"""The study's mirror in real databases: complete, live, and harmless when it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, create_engine, inspect, text

from search.core.config import SweepConfig
from search.ledger.ledger import Ledger
from search.ledger.study_mirror import (
    StudyMirror,
    sqlalchemy_url,
    study_storage_notice,
    study_storage_problems,
)
from spaces.registry import SPACES
from tests.servers import Postgresql, free_port, postgresql_programs
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts

SPACE = SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit"))

needs_postgresql = pytest.mark.skipif(
    postgresql_programs() is None, reason="PostgreSQL's server is not installed"
)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgresql]:
    server = Postgresql(tmp_path_factory.mktemp("postgresql") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    server: Postgresql = request.getfixturevalue("postgresql")
    return server.uri


@contextmanager
def mirrored(
    url: str, folder: Path, warn: Callable[[str], None] = pytest.fail, name: str = ""
) -> Iterator[Ledger]:
    """The ledger of a folder with a mirror; afterwards the mirror is complete."""
    mirror = StudyMirror(url, name or str(folder), ["maximize"], warn)
    ledger = Ledger(LocalStorage(folder), SPACE, "random", "asha", 0, on_change=mirror.update)
    mirror.start()
    yield ledger
    assert mirror.close(60) == 0


def end_some(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        live = ledger.ask()
        if live.number == 3:
            ledger.finish(3, "FAIL")
            continue
        for step in (1, 2, 3):
            values = [0.5 + 0.03 * ((5 * live.number + s) % 7) for s in range(1, step + 1)]
            ledger.report(live.number, values, {"val/accuracy": values[-1]})
            if step < 3 and ledger.prune(live.number):
                break
        else:
            ledger.finish(live.number, "COMPLETE")


def stored(url: str, name: str) -> list[FrozenTrial]:
    """The trials of a study in a database; none before the mirror has made its tables."""
    with engine(url) as found:
        tables = inspect(found)
        if not tables.has_table("alembic_version") or not tables.has_table("studies"):
            return []
        with found.connect() as connection:
            if not connection.execute(text("SELECT * FROM alembic_version")).all():
                return []
    storage = RDBStorage(sqlalchemy_url(url))
    try:
        study = storage.get_study_id_from_name(name)
        return storage.get_all_trials(study)
    except KeyError:
        return []
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def engine(url: str) -> Iterator[Engine]:
    found = create_engine(sqlalchemy_url(url))
    try:
        yield found
    finally:
        found.dispose()


def facts(trials: list[FrozenTrial]) -> list[object]:
    return [
        (
            t.number,
            t.state,
            t.values,
            t.params,
            t.distributions,
            t.intermediate_values,
            t.system_attrs,
        )
        for t in trials
    ]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_mirror_shows_the_running_study(url: str, tmp_path: Path) -> None:
    with mirrored(url, tmp_path) as ledger:
        end_some(ledger, 6)
        live = ledger.ask()
        ledger.report(live.number, [0.25], {"val/accuracy": 0.25})
        wait_until(lambda: facts(stored(url, str(tmp_path))) == facts(ledger.frozen()))
        states = {trial.state for trial in ledger.frozen()}
        assert states == {TrialState[s] for s in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")}


def test_a_mirror_is_continued_without_being_written_anew(url: str, tmp_path: Path) -> None:
    with mirrored(url, tmp_path) as ledger:
        end_some(ledger, 3)
        ledger.ask()
    first = [t.datetime_start for t in stored(url, str(tmp_path))]
    with mirrored(url, tmp_path) as ledger:
        end_some(ledger, 3)
    trials = stored(url, str(tmp_path))
    assert [t.datetime_start for t in trials][:4] == first
    assert facts(trials) == facts(ledger.frozen())


@pytest.mark.parametrize("how", ["more trials", "another value", "not failed", "deleted"])
def test_a_mirror_that_contradicts_the_folder_is_written_anew(
    url: str, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "sweep"
    with mirrored(url, folder, name=str(tmp_path)) as ledger:
        end_some(ledger, 5)
    if how == "more trials":
        shutil.rmtree(folder / "trials/000004")
    elif how == "another value":
        path = folder / "trials/000000/result.json"
        value = str(ledger.results[0].value)
        path.write_text(path.read_text().replace(f'"value": {value}', '"value": 0.125'))
    elif how == "not failed":
        Ledger(LocalStorage(folder), SPACE, "random", "asha", 0, retry_failed=True)
    else:
        storage = RDBStorage(sqlalchemy_url(url))
        storage.delete_study(storage.get_study_id_from_name(str(tmp_path)))
        storage.remove_session()
        storage.engine.dispose()
    with mirrored(url, folder, name=str(tmp_path)) as ledger:
        ledger.ask()
    assert facts(stored(url, str(tmp_path))) == facts(ledger.frozen())


def test_a_trial_that_another_process_adds_does_not_stay(url: str, tmp_path: Path) -> None:
    """A driver that was killed while its database hung may have sent one trial more."""
    with mirrored(url, tmp_path) as ledger:
        end_some(ledger, 2)
        wait_until(lambda: facts(stored(url, str(tmp_path))) == facts(ledger.frozen()))
        storage = RDBStorage(sqlalchemy_url(url))
        storage.create_new_trial(storage.get_study_id_from_name(str(tmp_path)))
        storage.remove_session()
        storage.engine.dispose()
        end_some(ledger, 2)
    assert facts(stored(url, str(tmp_path))) == facts(ledger.frozen())


@needs_postgresql
def test_an_outage_delays_no_trial_and_is_caught_up(postgresql: Postgresql, tmp_path: Path) -> None:
    warnings: list[str] = []
    with mirrored(postgresql.uri, tmp_path, warnings.append) as ledger:
        end_some(ledger, 2)
        for _ in range(2):
            wait_until(lambda: len(stored(postgresql.uri, str(tmp_path))) >= 2)
            count = len(warnings)
            postgresql.kill()
            try:
                start = time.monotonic()
                end_some(ledger, 20)
                assert time.monotonic() - start < 40
                wait_until(lambda: len(warnings) > count)  # noqa: B023
                time.sleep(1)  # no second line for the same outage
                assert len(warnings) == count + 1
            finally:
                postgresql.wait()
            known = len(ledger.frozen())
            wait_until(lambda: len(stored(postgresql.uri, str(tmp_path))) == known)  # noqa: B023
    assert facts(stored(postgresql.uri, str(tmp_path))) == facts(ledger.frozen())


@needs_postgresql
def test_a_server_that_hangs_holds_nobody_up(postgresql: Postgresql, tmp_path: Path) -> None:
    """It accepts connections and does not answer."""
    mirror = StudyMirror(postgresql.uri, str(tmp_path), ["maximize"], print)
    ledger = Ledger(LocalStorage(tmp_path), SPACE, "random", "asha", 0, on_change=mirror.update)
    mirror.start()
    end_some(ledger, 2)
    wait_until(lambda: len(stored(postgresql.uri, str(tmp_path))) == 2)
    with stopped(postgresql):
        start = time.monotonic()
        end_some(ledger, 10)
        assert mirror.close(1.0) >= 10
        assert time.monotonic() - start < 40
    mirror._thread.join(60)  # another driver would have ended it with its process
    assert len(stored(postgresql.uri, str(tmp_path))) < 12
    with mirrored(postgresql.uri, tmp_path) as ledger:
        pass
    assert facts(stored(postgresql.uri, str(tmp_path))) == facts(ledger.frozen())


def test_a_database_that_never_answers_costs_one_line(tmp_path: Path) -> None:
    warnings: list[str] = []
    url = f"postgresql://ada:secret@127.0.0.1:{free_port()}/db"
    mirror = StudyMirror(url, "x", ["maximize"], warnings.append)
    ledger = Ledger(LocalStorage(tmp_path), SPACE, "random", "asha", 0, on_change=mirror.update)
    mirror.start()
    end_some(ledger, 3)
    wait_until(lambda: bool(warnings))
    assert mirror.close(0.5) == 3
    (line,) = warnings
    assert "ada:***@127.0.0.1" in line
    assert "secret" not in line


def test_optuna_dashboard_shows_the_running_sweep(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    url, port = f"sqlite:///{tmp_path}/study.db", free_port()
    with mirrored(url, tmp_path, name="shown") as ledger:
        end_some(ledger, 3)
        wait_until(lambda: (tmp_path / "study.db").exists() and len(stored(url, "shown")) == 3)
        command = [Path(sys.executable).with_name("optuna-dashboard"), url, "--port", str(port)]
        with closing_process(subprocess.Popen(command, stderr=subprocess.DEVNULL)):
            page = f"http://127.0.0.1:{port}"
            wait_until(lambda: b"shown" in get(f"{page}/api/studies"))
            end_some(ledger, 2)
            # The interface has its own ids; the first study of a new database has number 1.
            wait_until(lambda: len(json.loads(get(f"{page}/api/studies/1"))["trials"]) == 5)
            assert b"<title>Optuna Dashboard</title>" in get(f"{page}/dashboard/")


@contextmanager
def stopped(server: Postgresql) -> Iterator[None]:
    members = [process.pid for process in server.members()]
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in members:
            with suppress(ProcessLookupError):  # some of them come and go
                os.kill(pid, signal.SIGCONT)


@contextmanager
def closing_process(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()  # so that its workers end too
        process.wait(30)


def get(url: str) -> bytes:
    try:
        with closing(urllib.request.urlopen(url, timeout=5)) as answer:
            content: bytes = answer.read()
            return content
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("postgresql://[::1/db", "got 'postgresql://[::1/db' (Invalid IPv6 URL)"),
        ("postgresql://u:secret[@h/d", "got 'postgresql://u:***@h/d'"),
        ("postgresql://127.0.0.1:port/x", "port"),
        ("postgresql://127.0.0.1:99999/x", "out of range"),
        ("mysql+nosuch://host/x", "Can't load plugin"),
        ("jurnal", "got 'jurnal'"),
        ("", "got ''"),
        ("sqlite://", "must name a file"),
        ("sqlite:////dev/null", "must be a regular file, and '/dev/null' is none"),
        ("sqlite:////no/such/folder/x.db", "an existing folder, and '/no/such/folder' is none"),
        ("sqlite:///a\0b", "out of range"),
        ("oracle://u:secret@h/x", "needs a driver: pip install oracledb"),
    ],
)
def test_an_address_that_cannot_work_is_one_clear_line(given: str, words: str) -> None:
    (problem,) = study_storage_problems(given)
    assert words in problem
    assert problem.startswith("--study-storage ")
    assert "secret" not in problem
    assert "\n" not in problem


def test_a_database_that_does_not_answer_is_a_notice(tmp_path: Path) -> None:
    url = f"postgresql://ada:secret@127.0.0.1:{free_port()}/db"
    assert study_storage_problems(url) == []
    notice = study_storage_notice(url)
    assert "'postgresql://ada:***@127.0.0.1" in notice
    assert "does not answer" in notice
    assert "secret" not in notice
    sqlite = f"sqlite:///{tmp_path}/new.db"
    assert study_storage_problems(sqlite) == []
    assert study_storage_notice(sqlite) == ""
    assert list(tmp_path.iterdir()) == []


@needs_postgresql
def test_a_database_that_answers_is_no_problem(postgresql: Postgresql) -> None:
    assert study_storage_problems(postgresql.uri) == []
    assert study_storage_notice(postgresql.uri) == ""


def test_passwords_are_neither_stored_nor_shown() -> None:
    config = SweepConfig(
        study_storage="postgresql://u:secret@h/d",
        tracking_uri="http://u:secret@h:5000",
        storage="s3://key:secret@bucket/x?region=eu",
    )
    assert "secret" not in str(config.public().to_dict())
