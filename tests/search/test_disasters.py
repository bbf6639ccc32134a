"""Failures around a whole sweep end in a clear message or a clean continuation, never in a wrong
result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.core.results import read_results
from tests.search.conftest import Sweep, kill_everything
from tests.search.ledger.test_study_mirror import stored
from tests.servers import Postgresql, postgresql_programs, s3_server
from trainables.core.storage import open_storage

pytestmark = pytest.mark.slow

QUIET = ("--tracking-uri", "none")
ONE_BY_ONE = ("--max-concurrent", "1")
SMALL = ("--space", "taskres", "--shots", "4", "--seeds", "1", "--eval-seeds", "1")


def record(sweep: Sweep) -> dict[str, object]:
    return json.loads((sweep.folder / "sweep.json").read_text())  # type: ignore[no-any-return]


def values(sweep: Sweep) -> dict[int, object]:
    return {n: (r["state"], r["values"], r["config"]) for n, r in sweep.results().items()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Five trials in sequence, undisturbed."""
    sweep = Sweep(tmp_path_factory.mktemp("calm"), "calm")
    done = sweep.run_alone(*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "5")
    assert done.returncode == 0, done.stderr
    return sweep


@pytest.fixture
def copy(calm: Sweep, tmp_path: Path) -> Sweep:
    """The finished sweep's folder, copied elsewhere under another name."""
    shutil.copytree(calm.folder, tmp_path / "moved" / "copy")
    return Sweep(tmp_path / "moved", "copy")


def test_a_copied_folder_goes_on_where_it_is(copy: Sweep, calm: Sweep) -> None:
    """Under another name, in another place, with more trials, which are those that the original
    would have had; the original is not touched."""
    before = values(calm)
    done = copy.run_alone(*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "7")
    assert done.returncode == 0, done.stderr
    found = values(copy)
    assert sorted(found) == list(range(7))
    assert {n: found[n] for n in before} == before == values(calm)
    done = calm.run_alone(*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "7")
    assert done.returncode == 0, done.stderr
    assert values(calm) == found


def test_a_result_of_another_version_is_refused(copy: Sweep) -> None:
    path = copy.folder / "trials/000003/result.json"
    text = json.dumps(json.loads(path.read_text()) | {"format": 99})
    path.write_text(text)
    done = copy.run_alone(*SMALL, *QUIET, "--trials", "7")
    assert done.returncode == 2
    assert "'trials/000003/result.json' is not: 'format' is 99" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_text() == text


def test_failed_trials_run_again_on_request(copy: Sweep, calm: Sweep) -> None:
    """Under their numbers and with their settings; without the option they stay as they are."""
    reason = "it was the machine's fault"
    for number in (1, 4):
        path = copy.folder / f"trials/{number:06d}/result.json"
        plain = json.loads(path.read_text())
        change = {"state": "FAIL", "value": None, "values": [], "reason": reason}
        path.write_text(json.dumps(plain | change))
    options = (*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "5")
    done = copy.run_alone(*options)
    assert done.returncode == 0, done.stderr
    assert [n for n, r in copy.results().items() if r["state"] == "FAIL"] == [1, 4]
    done = copy.run_alone("--resume", copy.name, "--retry-failed")
    assert done.returncode == 0, done.stderr
    found, before = copy.results(), calm.results()
    for number in (1, 4):  # trials that ended in the meantime may stop them earlier
        assert found[number]["state"] in ("COMPLETE", "PRUNED")
        assert found[number]["earlier_failures"] == [reason]
        assert found[number]["config"] == before[number]["config"]
    assert {n: v for n, v in values(copy).items() if n not in (1, 4)} == {
        n: v for n, v in values(calm).items() if n not in (1, 4)
    }


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    disk = _mounted(tmp_path, "size=8m")
    try:
        sweep = Sweep(disk, "test")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = sweep.run_alone(*SMALL, *QUIET)
        assert done.returncode == 2
        assert "The sweep's folder must be writable" in done.stderr
        assert "is not writable" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_stops_the_sweep_and_loses_nothing(
    tmp_path: Path, calm: Sweep
) -> None:
    disk = _mounted(tmp_path, "size=4m")
    options = (*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "5")
    try:
        sweep = Sweep(disk, "test")
        process = subprocess.Popen(
            sweep.command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while len(sweep.results()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        _, complaint = process.communicate(timeout=240)
        assert process.returncode == 1, complaint
        assert "error: The sweep stopped:" in complaint
        assert "No space left on device" in complaint
        assert "Finished trials are safe" in complaint
        assert "Traceback" not in complaint
        kept = values(sweep)
        assert len(kept) >= 2
        filler.unlink()
        done = sweep.run_alone(*options)
        assert done.returncode == 0, done.stderr
        found = values(sweep)
        assert {n: found[n] for n in kept} == kept
        assert found == {n: v for n, v in values(calm).items() if n < 5}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_sweep_in_a_bucket_survives_its_host(tmp_path: Path, calm: Sweep) -> None:
    """After kill -9 of all processes, another driver continues from the checkpoint in the bucket,
    without any file of the first one."""
    with s3_server(tmp_path) as server:
        sweep = Sweep(tmp_path, "test", server.location("sweeps"))
        options = (*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "5", "--checkpoint-seconds", "0")
        process = sweep.start(*options)
        folder = open_storage(sweep.location).child("test")
        sweep.wait_until(lambda: folder.exists("trials/000002/checkpoint.safetensors"))
        kill_everything(process)
        kept = read_results(folder)
        assert len(kept) >= 2
        done = sweep.run_alone(*options)
        assert done.returncode == 0, done.stderr
        results = read_results(folder)
        assert {n: results[n] for n in kept} == kept
        found = {n: (r.state, list(r.values), r.config) for n, r in results.items()}
        assert found == {n: v for n, v in values(calm).items() if n < 5}
        assert folder.exists("evaluation.json")
        assert folder.read_log("test_reads.jsonl").count(b"\n") == 1
        assert not [name for name in folder.files() if "checkpoint" in name]
        assert not list(tmp_path.glob("test/*"))  # nothing on the disk


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Postgresql]:
    if postgresql_programs() is None:
        pytest.skip("PostgreSQL's server is not installed")
    server = Postgresql(tmp_path / "postgresql.log")
    try:
        server.wait()
        yield server
    finally:
        server.remove()


def test_a_study_in_postgresql(database: Postgresql, tmp_path: Path, calm: Sweep) -> None:
    """The database is unreachable at the start, comes back, and dies again: no trial is affected,
    and finally it holds the study. A copy of the folder gets a separate study."""
    sweep = Sweep(tmp_path, "test")
    options = (*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "5")
    mirror = ("--study-storage", database.uri)
    database.kill()
    process = sweep.start(*options, *mirror, "--checkpoint-seconds", "0")
    sweep.wait_until(lambda: len(sweep.results()) >= 2)
    kill_everything(process)
    database.wait()
    done = sweep.run_alone(*options, *mirror)
    assert done.returncode == 0, done.stderr
    assert values(sweep) == {n: v for n, v in values(calm).items() if n < 5}
    assert_same_study(database.uri, sweep)

    shutil.copytree(sweep.folder, tmp_path / "copies" / "test")
    copy = Sweep(tmp_path / "copies", "test")
    done = copy.run_alone(*options, *mirror)
    assert done.returncode == 0, done.stderr
    assert values(copy) == values(sweep)
    assert len({row["id"] for row in map(record, (sweep, copy))}) == 2  # each with its own study
    assert_same_study(database.uri, copy)


def assert_same_study(uri: str, sweep: Sweep) -> None:
    """Optuna's own reader finds in the database what the folder holds."""
    name = f"{sweep.name}-{record(sweep)['id'][:8]}"
    trials = stored(uri, name)
    results = sweep.results()
    assert [t.number for t in trials] == sorted(results)
    for trial in trials:
        result = results[trial.number]
        assert (trial.state.name, trial.value) == (result["state"], result["value"])
        assert trial.params == result["parameters"]
        assert list(trial.intermediate_values.values()) == result["values"]


def test_a_budget_is_extended(sweep: Sweep) -> None:
    """Where the first budget ends depends on the machine; what it had finished stays."""
    options = (*SMALL, *QUIET)
    done = sweep.run_alone(*options, "--trials", "300", "--time-budget", "12s")
    assert done.returncode in (0, 1), done.stderr  # 1: no trial was complete yet
    first = values(sweep)
    assert len(first) < 300
    done = sweep.run_alone(*options, "--trials", str(len(first) + 4), "--time-budget", "10m")
    assert done.returncode == 0, done.stderr
    found = values(sweep)
    assert len(found) >= len(first) + 4
    assert {n: found[n] for n in first} == first


def test_a_worker_that_dies_again_and_again_fails_its_trial_alone(sweep: Sweep) -> None:
    """Three deaths without a step forward; the count is kept when the driver dies in between."""
    options = ("--space", "rmt", "--shots", "1", "--trials", "2", "--eval-seeds", "1", *QUIET)
    options = (*options, *ONE_BY_ONE, "--checkpoint-seconds", "1000")
    process = sweep.start(*options)
    killed: set[int] = set()

    def kill_workers_of_trial_0() -> bool:
        if 0 in sweep.results():
            return True
        for pid, name in _workers(process.pid).items():
            if pid not in killed and "train" in name:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
        return False

    sweep.wait_until(kill_workers_of_trial_0, timeout=300)
    assert process.wait(timeout=300) in (0, 1)
    results = sweep.results()
    assert results[0]["state"] == "FAIL"
    assert results[0]["failures"] == len(killed) == 3
    assert results[0]["reason"].startswith("the worker died")
    assert results[1]["state"] == "COMPLETE"


def _workers(session: int) -> dict[int, str]:
    listing = subprocess.run(
        ["ps", "-eww", "-o", "pid=,sid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split(None, 2) for line in listing.splitlines())
    return {int(p): args for p, s, args in rows if int(s) == session and "Trainable" in args}


def _mounted(tmp_path: Path, options: str) -> Path:
    """A separate small file system; the caller unmounts it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    return disk


@pytest.mark.parametrize("seconds", ["0", "1000"], ids=["at a checkpoint", "at a commit"])
def test_a_folder_that_is_moved_stops_the_sweep(sweep: Sweep, seconds: str) -> None:
    """It can be resumed in the new place; no trial is written in the old one."""
    options = (*SMALL, *ONE_BY_ONE, *QUIET, "--trials", "200", "--checkpoint-seconds", seconds)
    process = sweep.start(*options)
    sweep.wait_until(lambda: len(sweep.results()) >= 2)
    moved = sweep.storage / "moved"
    moved.mkdir()
    sweep.folder.rename(moved / sweep.name)
    assert process.wait(timeout=120) == 1
    log = (sweep.storage / f"{sweep.name}.log").read_text()
    assert "error: The sweep stopped: " in log
    assert f"'{sweep.folder}' was moved or deleted while" in log
    assert "Traceback" not in log
    assert not list(sweep.folder.glob("trials/*"))
    there = Sweep(moved, sweep.name)
    kept = values(there)
    done = there.run_alone(*SMALL, *ONE_BY_ONE, *QUIET, "--trials", str(len(kept) + 1))
    assert done.returncode == 0, done.stderr
    assert {n: values(there)[n] for n in kept} == kept


def test_a_shortage_of_memory_fails_no_trial(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray kills every worker, because the limit is far below what the machine uses without them;
    when there is memory again, the same trials run."""
    options = (*SMALL, *QUIET, "--trials", "3")
    path = sweep.storage / f"{sweep.name}.log"
    with monkeypatch.context() as patch:
        patch.setenv("RAY_memory_usage_threshold", "0.001")
        process = sweep.start(*options)
    sweep.wait_until(lambda: "Memory is short" in path.read_text())
    time.sleep(25)  # each trial would have died three times
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    log = path.read_text()
    assert log.count("Memory is short") == 1
    assert len(log.splitlines()) < 10, log
    assert not sweep.results()
    done = sweep.run_alone(*options)
    assert done.returncode == 0, done.stderr
    results = sweep.results().values()
    assert {result["state"] for result in results} <= {"COMPLETE", "PRUNED"}
    assert {result["failures"] for result in results} == {0}
