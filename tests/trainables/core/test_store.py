"""The store: one process computes, all others read; crashes, damage and full disks never cause
wrong values."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainables.core.files import cache_folder
from trainables.core.storage import StorageError
from trainables.core.store import Store, Stored
from trainables.data.base import DataError
from trainables.view import as_lists

FACTS = {"kind": "test", "view": 0, "transform": {"mean": [0.1, 0.2]}}
ROWS = torch.arange(60, dtype=torch.float32).view(20, 3)

WORKER = """
import sys, time
from pathlib import Path
import torch
from trainables.core.store import Store
from trainables.view import as_lists
folder, log, wait = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def compute():
    with log.open("a") as file:
        file.write("computed\\n")
    yield {"features": as_lists(torch.arange(30.0).view(10, 3))}
    time.sleep(wait)
    yield {"features": as_lists(torch.arange(30.0, 60.0).view(10, 3))}

facts = {"kind": "test", "view": 0, "transform": {"mean": [0.1, 0.2]}}
found = Store(folder).get(facts, 20, compute)
print(len(found.batches))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "features")


def compute(rows: torch.Tensor = ROWS) -> Iterator[Mapping[str, pa.Array]]:
    yield {"features": as_lists(rows)}


def fill(store: Store, rows: torch.Tensor = ROWS) -> Stored:
    return store.get(FACTS, len(rows), lambda: compute(rows))


def never() -> Iterator[Mapping[str, pa.Array]]:
    raise AssertionError("it is there already")


def names(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


def worker(store: Store, log: Path, wait: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(store.root), str(log), str(wait)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_lies_in_the_users_cache() -> None:
    assert Store.of_this_machine().root == cache_folder() / "features"
    assert cache_folder() == Path(os.environ["XDG_CACHE_HOME"]) / "few-shot-clip-search"


def test_what_is_computed_once_is_read_ever_after(store: Store) -> None:
    assert torch.equal(fill(store).matrix("features"), ROWS)
    assert torch.equal(store.get(FACTS, 20, never).matrix("features"), ROWS)
    assert names(store) == [store.path(FACTS).name]
    with pa.OSFile(str(store.path(FACTS))) as file:
        metadata = pa.ipc.open_file(file).schema.metadata
    assert json.loads(metadata[b"facts"]) == FACTS


@pytest.mark.parametrize("other", [{"view": 1}, {"kind": "tests"}, {"transform": {"mean": [0.1]}}])
def test_other_facts_are_another_file(store: Store, other: dict[str, object]) -> None:
    fill(store)
    assert store.find(FACTS | other, 20) is None
    assert store.path(dict(reversed(FACTS.items()))) == store.path(FACTS)  # order is no fact


def test_what_is_written_into_a_tensor_stays_in_the_process(store: Store) -> None:
    features = fill(store).matrix("features")
    features += 1
    assert torch.equal(store.get(FACTS, 20, never).matrix("features"), ROWS)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_file_that_is_cut_off_is_computed_again(store: Store, data: st.DataObject) -> None:
    fill(store)
    path = store.path(FACTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert store.find(FACTS, 20) is None
    assert torch.equal(fill(store).matrix("features"), ROWS)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["noise", "zeros", "another's facts", "fewer rows", "a folder"])
def test_what_is_no_such_file_is_computed_again(store: Store, damage: str) -> None:
    fill(store)
    path = store.path(FACTS)
    size = path.stat().st_size
    match damage:
        case "noise":
            path.write_bytes(os.urandom(size))
        case "zeros":
            path.write_bytes(bytes(size))
        case "another's facts":
            other = FACTS | {"view": 3}
            store.get(other, 20, compute)
            store.path(other).rename(path)
        case "fewer rows":
            path.unlink()
            fill(store, ROWS[:19])
        case "a folder":
            path.unlink()
            path.mkdir()
            with pytest.raises(StorageError, match=r"Is a directory|not a regular file"):
                fill(store)
            return
    assert torch.equal(fill(store).matrix("features"), ROWS)


def test_a_mistake_while_computing_leaves_nothing(store: Store) -> None:
    def fails() -> Iterator[Mapping[str, pa.Array]]:
        yield from compute(ROWS[:5])
        raise DataError("the sixth image is broken")

    with pytest.raises(DataError, match="the sixth image"):
        store.get(FACTS, 20, fails)
    assert names(store) == []
    with pytest.raises(ValueError, match="20 rows were to be stored, got 5"):
        store.get(FACTS, 20, lambda: compute(ROWS[:5]))
    assert names(store) == []
    fill(store)


def test_one_computes_and_the_others_wait(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [worker(store, log, 1.0) for _ in range(2)]
    until(log)
    assert len(store.get(FACTS, 20, never).batches) == 2
    assert [process.communicate(timeout=120)[0] for process in workers] == ["2\n"] * 2
    assert log.read_text() == "computed\n"
    assert names(store) == [store.path(FACTS).name]


def test_a_killed_writer_is_replaced(store: Store, tmp_path: Path) -> None:
    """One that waits for it takes over at once, and nothing of it is left."""
    log = tmp_path / "log"
    process = worker(store, log, 600)
    until(log)
    found: list[Stored] = []
    waiter = threading.Thread(target=lambda: found.append(fill(store)))
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    assert not store.path(FACTS).exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    waiter.join(60)
    assert torch.equal(found[0].matrix("features"), ROWS)
    assert names(store) == [store.path(FACTS).name]


def test_what_dead_writers_left_is_swept(store: Store, tmp_path: Path) -> None:
    """The next writer removes them, whatever it writes, but not those of a living one."""
    log = tmp_path / "log"
    process = worker(store, log, 600)
    until(log)
    part = store.root / f".{store.path(FACTS).name}.part"
    other = FACTS | {"view": 5}
    store.get(other, 20, compute)
    assert part.exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert part.exists()
    third = FACTS | {"view": 6}
    store.get(third, 20, compute)
    assert names(store) == sorted(store.path(facts).name for facts in (other, third))


READER = """
import sys
from pathlib import Path
import torch
from trainables.core.store import Store

def kilobytes():
    rows = (line.split() for line in open("/proc/self/smaps_rollup") if line.count(":") == 1)
    return {row[0]: int(row[1]) for row in rows if row[-1] == "kB"}

torch.ones(1 << 20).sum()
before = kilobytes()
features = Store(Path(sys.argv[1])).find({"kind": "large"}, 32768).matrix("features")
assert features.sum() == 32768 * 512  # every page is touched
after = kilobytes()
for key in ("Rss:", "Private_Dirty:", "Anonymous:"):
    print(after[key] - before[key])
"""


def test_a_second_process_has_no_copy(store: Store) -> None:
    """Both see 64 MB, and the second one has less than 4 MB of private memory."""
    store.get({"kind": "large"}, 32768, lambda: compute(torch.ones(32768, 512)))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(store.root)], capture_output=True, text=True, check=True
    )
    resident, dirty, anonymous = map(int, done.stdout.split())
    assert resident > 60_000
    assert dirty < 4_000
    assert anonymous < 4_000


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^'.*/file/features/\w+.arrow': Not a directory: .*$"):
        fill(Store(tmp_path / "file" / "features"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip(f"mounting a small disk needs more rights: {done.stderr.decode().strip()}")
    try:
        store = Store(disk / "features")
        with pytest.raises(StorageError) as caught:
            store.get(FACTS, 1000, lambda: compute(torch.ones(1000, 500)))
        assert "\n" not in str(caught.value)
        assert "No space left on device" in str(caught.value)
        assert "XDG_CACHE_HOME" in str(caught.value)
        assert names(store) == []
        assert torch.equal(fill(store).matrix("features"), ROWS)  # what fits is kept
    finally:
        subprocess.run(["umount", str(disk)], check=True)
