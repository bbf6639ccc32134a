"""The outbox: whole events, in order, exactly those that were not marked, whatever was torn off."""

import json
import resource
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.tracking.outbox import Outbox

events = st.dictionaries(
    st.text(max_size=5),
    st.integers() | st.text(max_size=20) | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "outbox.jsonl"


def replay(path: Path) -> list[dict[str, object]]:
    outbox = Outbox(path)
    found = [event for _, event in outbox.pending()]
    assert outbox.undelivered() == len(found)
    assert outbox.behind == bool(found)
    outbox.close()
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=8), st.data())
def test_a_new_process_sees_exactly_the_unmarked_whole_events(
    appended: list[dict[str, object]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox.jsonl"
        ends = []
        with closing(Outbox(path)) as outbox:
            for event in appended:
                outbox.append(event)
                ends.append(path.stat().st_size)
            assert [end for end, _ in outbox.pending()] == ends
            marked = data.draw(st.integers(0, len(appended)), label="marked")
            if marked:
                outbox.mark_delivered(ends[marked - 1])

        size = data.draw(st.integers(0, path.stat().st_size), label="bytes left")
        with path.open("r+b") as file:
            file.truncate(size)
        whole = sum(end <= size for end in ends)
        assert replay(path) == appended[marked:whole]

        late = {"late": 1}
        outbox = Outbox(path)
        outbox.append(late)
        outbox.close()
        assert replay(path) == [*appended[marked:whole], late]


def test_a_line_longer_than_a_block_is_found_whole(path: Path) -> None:
    outbox = Outbox(path)
    long = {"text": "x" * 200_000}
    outbox.append(long)
    outbox.close()
    with path.open("ab") as file:
        file.write(b'{"text": "' + b"y" * 200_000)
    assert replay(path) == [long]


@pytest.mark.parametrize("mark", ["", "nonsense", "-1", "3", "10000"])
def test_a_mark_that_is_not_ours_loses_nothing_unless_it_lies_beyond_the_end(
    path: Path, mark: str
) -> None:
    outbox = Outbox(path)
    outbox.append({"n": 0})
    outbox.append({"n": 1})
    outbox.close()
    path.with_suffix(".delivered").write_text(mark)
    assert replay(path) == ([] if mark == "10000" else [{"n": 0}, {"n": 1}])


def test_a_damaged_line_is_handed_on_as_unreadable(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"n": 0}\n\0\0\0\n{"n": 1}\n')
    kinds = [event.get("kind", event.get("n")) for event in replay(path)]
    assert kinds == [0, "unreadable", 1]


def test_what_is_not_json_is_refused_and_leaves_no_trace(path: Path) -> None:
    outbox = Outbox(path)
    with pytest.raises(TypeError):
        outbox.append({"path": Path()})
    with pytest.raises(ValueError, match="Out of range float"):
        outbox.append({"x": float("nan")})
    assert path.read_bytes() == b""
    assert not outbox.behind
    outbox.close()


def test_a_full_disk_leaves_the_queue_as_it_was(path: Path) -> None:
    outbox = Outbox(path)
    outbox.append({"n": 0})
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, hard))
    try:
        with pytest.raises(OSError, match="No space left"):
            outbox.append({"n": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    outbox.append({"n": 2})
    outbox.close()
    assert replay(path) == [{"n": 0}, {"n": 2}]


def test_threads_append_whole_lines(path: Path) -> None:
    outbox = Outbox(path)

    def work(worker: int) -> None:
        for n in range(100):
            outbox.append({"worker": worker, "n": n})

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.close()
    found = replay(path)
    assert [e["n"] for e in found if e["worker"] == 2] == list(range(100))
    assert len(found) == 400


def test_refused_events_keep_their_reason(path: Path) -> None:
    outbox = Outbox(path)
    outbox.refuse({"n": 0}, "no")
    outbox.refuse({"n": 1}, "never")
    outbox.close()
    lines = path.with_suffix(".refused.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"reason": "no", "event": {"n": 0}},
        {"reason": "never", "event": {"n": 1}},
    ]
