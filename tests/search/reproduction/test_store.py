"""The ledger of cells."""

from __future__ import annotations

from pathlib import Path

from search.core.task import EvaluationSet
from search.evaluation.workers import Candidate, SplitJob
from search.reproduction.store import CELLS, CellStore
from trainables.core.storage import open_storage
from trainables.trial import Episode


def job(training: str) -> SplitJob:
    candidate = Candidate("paper", Episode("digits", 1, 1), {}, training)
    return SplitJob(EvaluationSet("digits", ("digits",)), (candidate,), 1, None)


def test_a_failure_is_kept_until_the_training_succeeds(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    store = CellStore(storage)
    store.commit_failure("a", "NonFiniteError: loss became nan")
    assert CellStore(storage).failure("a") == "NonFiniteError: loss became nan"
    assert CellStore(storage).evaluated(job("a")) is None
    store.commit("a", job("a"))
    assert store.failure("a") == CellStore(storage).failure("a") == ""
    assert CellStore(storage).evaluated(job("a")) is not None


def test_a_failed_read_is_kept_until_that_read_succeeds(tmp_path: Path) -> None:
    """Whatever the other reads of the same training do."""
    storage = open_storage(str(tmp_path))
    store = CellStore(storage)
    store.commit_failure("a", "OutOfMemoryError", job("other").file)
    store.commit("a", job("a"))
    assert store.failure("a") == CellStore(storage).failure("a") == "OutOfMemoryError"
    store.commit("a", job("other"))
    assert store.failure("a") == CellStore(storage).failure("a") == ""


def test_a_partial_line_loses_itself_only(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    CellStore(storage).commit("a", job("a"))
    with (tmp_path / CELLS).open("ab") as file:
        file.write(b'{"training": "b", "jo')
    store = CellStore(storage)
    assert store.evaluated(job("a")) is not None
    store.commit("c", job("c"))
    again = CellStore(storage)
    assert again.evaluated(job("a")) is not None
    assert again.evaluated(job("b")) is None
    assert again.evaluated(job("c")) is not None


def test_who_lost_the_folder_writes_nothing(tmp_path: Path) -> None:
    class LostError(RuntimeError):
        pass

    def guard() -> None:
        raise LostError

    store = CellStore(open_storage(str(tmp_path)), guard)
    try:
        store.commit_failure("a", "x")
    except LostError:
        pass
    else:
        raise AssertionError("it has written")
    assert not (tmp_path / CELLS).exists()
