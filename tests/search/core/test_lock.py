"""One owner at a time, on one machine and on several, after every kind of exit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from search.core import lock
from search.core.lock import Claim, LostOwnershipError, SweepLock
from search.core.problems import UsageError
from trainables.core.storage import LocalStorage

HOLD = """
import sys, time
from search.core.lock import SweepLock
from trainables.core.storage import open_storage
from search.core.problems import UsageError
try:
    with SweepLock(open_storage(sys.argv[1]), print):
        print("holds", flush=True)
        time.sleep(float(sys.argv[2]))
        print("done", flush=True)
except UsageError as error:
    print(error, flush=True)
"""
OTHER_HOST = ("unshare", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c")


def hold(folder: Path, seconds: float = 60, host: str = "") -> subprocess.Popen[str]:
    """Another driver; with `host`, on another machine as far as names and processes go."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    if host:
        command = [*OTHER_HOST, 'hostname "$0" && exec "$@"', host, *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts holders, and ends them."""
    started: list[subprocess.Popen[str]] = []

    def run(seconds: float = 60, host: str = "") -> subprocess.Popen[str]:
        started.append(hold(tmp_path, seconds, host))
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def other_host() -> str:
    """Its name; skips where no such thing can be made."""
    probe = [*OTHER_HOST, "hostname elsewhere"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False).returncode:
        pytest.skip("another host's names need namespaces (root, unshare)")
    return "elsewhere"


def test_it_is_free_after_its_holder(tmp_path: Path) -> None:
    with (
        SweepLock(LocalStorage(tmp_path)),
        pytest.raises(UsageError, match=f"being run already by process {os.getpid()} on"),
    ):
        SweepLock(LocalStorage(tmp_path)).__enter__()
    with SweepLock(LocalStorage(tmp_path)) as mine:
        mine.check()
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_free_at_once_when_its_holder_dies_on_this_machine(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], number: int
) -> None:
    process = start()
    assert first_line(process) == "holds"
    with pytest.raises(UsageError, match=f"process {process.pid} on"):
        SweepLock(LocalStorage(tmp_path)).__enter__()
    os.kill(process.pid, number)
    process.wait()
    begin = time.monotonic()
    with SweepLock(LocalStorage(tmp_path)):
        assert time.monotonic() - begin < 2


def test_a_stopped_process_still_holds(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start()
    first_line(process)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(UsageError, match="being run already"):
        SweepLock(LocalStorage(tmp_path)).__enter__()
    os.kill(process.pid, signal.SIGCONT)


def test_of_many_at_once_one_gets_it(start: Callable[..., subprocess.Popen[str]]) -> None:
    for _ in range(3):
        processes = [start() for _ in range(5)]
        lines = [first_line(process) for process in processes]
        assert lines.count("holds") <= 1
        for process in processes:
            process.kill()
            process.wait()
    assert first_line(start(seconds=0)) == "holds"


def test_a_living_driver_on_another_host_is_respected(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], other_host: str
) -> None:
    assert first_line(start(host=other_host)) == "holds"
    said: list[str] = []
    with pytest.raises(UsageError, match=r"being run already by process \d+ on elsewhere"):
        SweepLock(LocalStorage(tmp_path), said.append).__enter__()
    assert said[0].startswith("Waiting up to 20 s to see whether process")


def test_a_dead_driver_on_another_host_is_outwaited(
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    other_host: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        lock, "LEASE_SECONDS", 6.0
    )  # longer than a beat; the claim's writer is dead anyway
    process = start(host=other_host)
    assert first_line(process) == "holds"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    begin = time.monotonic()
    with SweepLock(LocalStorage(tmp_path)):
        assert 5 < time.monotonic() - begin < 15


def test_who_was_away_too_long_may_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.2)
    with SweepLock(LocalStorage(tmp_path)) as mine:
        mine.check()
        (claim,) = (tmp_path / "owner").glob("*.json")
        claim.unlink()  # what a driver on another host does that takes us for dead
        time.sleep(1)
        with pytest.raises(LostOwnershipError, match="another one has taken the sweep over"):
            mine.check()
        assert not list((tmp_path / "owner").glob("*.json"))  # not claimed again either


def test_after_a_pause_ownership_is_asked_before_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was stopped, and its renewing thread with it."""
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 3600.0)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.4)
    with SweepLock(LocalStorage(tmp_path)) as mine:
        (claim,) = (tmp_path / "owner").glob("*.json")
        beat = json.loads(claim.read_text())["beat"]
        time.sleep(0.5)
        mine.check()
        assert json.loads(claim.read_text())["beat"] == beat + 1  # renewed by the check
        claim.unlink()
        time.sleep(0.5)
        with pytest.raises(LostOwnershipError):
            mine.check()


def test_after_the_machine_has_slept_ownership_is_asked_before_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of its processes stood still meanwhile."""
    with SweepLock(LocalStorage(tmp_path)) as mine:
        (claim,) = (tmp_path / "owner").glob("*.json")
        claim.unlink()
        awake = time.clock_gettime
        monkeypatch.setattr(
            time,
            "clock_gettime",
            lambda clock: awake(clock) + 3600 * (clock == time.CLOCK_BOOTTIME),
        )
        with pytest.raises(LostOwnershipError):
            mine.check()


def test_a_pause_within_a_renewal_leaves_one_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen its claim, sleeps until another driver has deleted that and holds the sweep, and
    writes the claim again."""
    exists, awake = LocalStorage.exists, time.clock_gettime
    other = Claim("far", "far/1/1", 7, "1", "2026-11-30 12:00:00", holds=True)
    slept = [0.0]

    def suspended(storage: LocalStorage, name: str) -> bool:
        found = exists(storage, name)
        storage.delete(name)
        storage.write("other.json", json.dumps(asdict(other)).encode())
        slept[0] = 3600.0
        return found

    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + slept[0])
    with SweepLock(LocalStorage(tmp_path)) as mine:
        monkeypatch.setattr(LocalStorage, "exists", suspended)
        mine._verify()
        monkeypatch.setattr(LocalStorage, "exists", exists)
        with pytest.raises(LostOwnershipError):
            mine.check()
    assert [path.name for path in (tmp_path / "owner").glob("*.json")] == ["other.json"]


def test_a_renewal_meanwhile_does_not_take_back_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that renews has the claim before the driver changes it, and writes it after."""
    mine = SweepLock(LocalStorage(tmp_path))
    write, renewing, changing = LocalStorage.write, threading.Event(), threading.Event()

    def slow(storage: LocalStorage, name: str, data: bytes) -> None:
        if threading.current_thread() is not threading.main_thread():
            renewing.set()
            changing.wait(0.3)
        write(storage, name, data)

    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 3600.0)
    monkeypatch.setattr(LocalStorage, "write", slow)

    def meanwhile() -> None:
        thread = threading.Thread(target=mine._verify)
        thread.start()
        renewing.wait()
        threads.append(thread)

    threads: list[threading.Thread] = []
    monkeypatch.setattr(mine, "_wait_for_other_owners", meanwhile)
    with mine:
        changing.set()
        threads[0].join()
        (claim,) = (tmp_path / "owner").glob("*.json")
        assert json.loads(claim.read_text())["holds"]


def test_a_claim_of_an_earlier_boot_is_another_machines(tmp_path: Path) -> None:
    """The same process number means another process after a restart."""
    here = Claim("h", lock._machine(), os.getpid(), lock._started(os.getpid()), "")
    assert here.is_dead(lock._machine()) is False
    assert Claim("h", "h/other-boot/x", 1, "1", "").is_dead(lock._machine()) is None
    assert Claim("h", lock._machine(), os.getpid(), "1", "").is_dead(lock._machine()) is True


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', json.dumps({"a": 1})])
def test_a_damaged_claim_holds_nothing(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "owner"
    folder.mkdir()
    (folder / "00000000000000000001-aaaaaaaa.json").write_text(text)
    with SweepLock(LocalStorage(tmp_path)):
        assert len(list(folder.glob("*.json"))) == 1


def test_clocks_need_not_agree(tmp_path: Path) -> None:
    """A claim whose name comes from a clock far ahead is still seen to be dead."""
    folder = tmp_path / "owner"
    folder.mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    claim = Claim("h", lock._machine(), dead.pid, "12345", "2099-01-01", holds=True)
    (folder / f"{9 * 10**19}-aaaaaaaa.json").write_text(json.dumps(asdict(claim)))
    with SweepLock(LocalStorage(tmp_path)):
        assert len(list(folder.glob("*.json"))) == 1
