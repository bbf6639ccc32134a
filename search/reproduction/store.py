"""The ledger of trained and evaluated cells, `cells.jsonl`, shared by all tables of a folder.

A line is written when a test split has been classified, or when a training has failed; the cell is
never repeated after that. Models and predictions are stored in the folder of evaluations, named by
the digest of the training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from search.evaluation.predictions import PredictionTable
from search.evaluation.workers import (
    FOLDER,
    SplitJob,
    TrainingFacts,
    facts_file,
    load_result,
    read_seconds,
    training_file,
)
from trainables.core.records import Count, Positive, RecordError, Seconds, from_plain, parse_json
from trainables.core.storage import Storage
from trainables.core.tensor_file import Content, read_checked

CELLS = "cells.jsonl"


@dataclass(frozen=True)
class EvaluatedPart:
    """Result on one part of a test split."""

    part: str
    """`test`, `base`, `new`, `shift` or `target`."""
    right: Count
    """Correctly classified images."""
    images: Positive
    """All images."""


@dataclass(frozen=True)
class Line:
    """A line of the ledger."""

    training: str
    """Digest of the training."""
    job: str = ""
    """File with the predictions; empty if the training failed before any read."""
    parts: tuple[EvaluatedPart, ...] = ()
    """The parts of the test split that were classified."""
    seconds: Seconds = 0.0
    """Seconds for reading and classifying the test split."""
    failed: str = ""
    """Why the training or this read failed; empty if it did not."""


class CellStore:
    """The cells in a folder. Only the process that owns the folder appends to the ledger."""

    def __init__(self, storage: Storage, guard: Callable[[], None] = lambda: None) -> None:
        """`guard` is called before a line is written, and raises if this process no longer owns the
        folder. Raises `StorageError`."""
        self.storage, self._folder, self._guard = storage, storage.child(FOLDER), guard
        self._evaluated: dict[str, Line] = {}
        self._failed: dict[str, dict[str, str]] = {}  # training -> job -> why
        log = storage.read_log(CELLS)
        self._is_torn = bool(log) and not log.endswith(b"\n")
        for line in _lines(log):
            self._add(line)

    def _add(self, line: Line) -> None:
        failed = self._failed.setdefault(line.training, {})
        if line.failed:
            failed[line.job] = line.failed
        else:
            self._evaluated[line.job] = line
            for job in ("", line.job):  # what is read has been trained
                failed.pop(job, None)

    def evaluated(self, job: SplitJob) -> Line | None:
        """Return the line of a job; None if it has not been evaluated."""
        return self._evaluated.get(job.file)

    def failure(self, training: str) -> str:
        """Return why a training or one of its reads failed; empty if none did."""
        return next(iter(self._failed.get(training, {}).values()), "")

    def commit(self, training: str, job: SplitJob) -> None:
        """Record the stored result of a job."""
        parts = tuple(
            EvaluatedPart(t.part, int(t.right(answers).sum()), len(t.truth))
            for t in self.predictions(job)
            for answers in t.answers
        )
        self._append(Line(training, job.file, parts, read_seconds(self._folder, job)))

    def commit_failure(self, training: str, reason: str, job: str = "") -> None:
        """Record that a training failed, or the read of a job."""
        self._append(Line(training, job, failed=reason))

    def _append(self, line: Line) -> None:
        self._guard()
        # A partial line that a power cut has left must not corrupt this one.
        start, self._is_torn = b"\n" * self._is_torn, False
        self.storage.append(CELLS, start + json.dumps(asdict(line)).encode() + b"\n")
        self._add(line)

    def is_trained(self, training: str) -> bool:
        """Whether a whole model is stored."""
        return self.artifact(training) is not None

    def artifact(self, training: str) -> Content | None:
        """Return the artifact of a training; None if it is missing or damaged."""
        return read_checked(self._folder, training_file(training))

    def predictions(self, job: SplitJob) -> list[PredictionTable]:
        """Return the stored predictions of a job; empty if they are missing or damaged."""
        found = load_result(self._folder, job)
        return found[0] if found else []

    def facts(self, training: str) -> TrainingFacts | None:
        """Return the facts of a training; None if they are not stored."""
        try:
            return from_plain(TrainingFacts, parse_json(self._folder.read(facts_file(training))))
        except (FileNotFoundError, RecordError):
            return None


def _lines(log: bytes) -> Iterator[Line]:
    """Yield the complete lines of a ledger."""
    for text in log.splitlines():
        try:
            yield from_plain(Line, parse_json(text))
        except RecordError:  # a partial line, which a power cut leaves
            continue
