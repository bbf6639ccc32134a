"""The seal on test data.

The test split decides nothing: it is read after the search, to report the winner. A data set
returns it only for a `TestPermit`, and permits are created in this module only: after the read has
been recorded, or to check that the split can be read, which reports faults and nothing else.

Every process has at most one role, an environment variable. Training processes cannot get a permit,
so no method, data set or space that runs in them can. Only an evaluation process reads the split,
and it cannot become a training process. Ray starts each with its own environment
(`TRAINING_PROCESS`, `EVALUATION_PROCESS`) and never reuses a process for a task with another
environment, so the two cannot mix. `search/evaluation/workers.py` is the only module that may
import `read_test_split` (enforced by a test).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from trainables.data.base import Dataset, SealedError, Split
from trainables.data.few_shot import check_readable

_ROLE = "FEWSHOT_PROCESS_ROLE"
TRAINING_PROCESS = {_ROLE: "training"}
"""Environment of a process that trains or prepares training."""
EVALUATION_PROCESS = {_ROLE: "evaluation"}
"""Environment of a process that reads test data."""


@dataclass(frozen=True)
class TestPermit:
    """Permission to read one data set's test split."""

    __test__ = False  # not a test class, whatever its name suggests to pytest

    dataset: str
    """Registry name of the data set."""

    def check(self, dataset: str) -> None:
        """Raises `SealedError` for another data set's permit or in a training process."""
        if os.environ.get(_ROLE) == TRAINING_PROCESS[_ROLE]:
            raise SealedError(
                "Test data cannot be read in a process that trains trials: the objective of a "
                "search is validation data. Test figures come from the evaluation afterwards."
            )
        if dataset != self.dataset:
            raise SealedError(f"A permit for '{self.dataset}' does not open '{dataset}'.")


def seal_process() -> None:
    """Make this process, and those that it starts, training processes for good.

    Raises `SealedError` in an evaluation process.
    """
    if os.environ.get(_ROLE) == EVALUATION_PROCESS[_ROLE]:
        raise SealedError("A process that reads test data cannot train: start another process.")
    os.environ.update(TRAINING_PROCESS)


def read_test_split(dataset: Dataset, record: Callable[[], None]) -> Split:
    """Return the test split, after `record` has stored the read and returned.

    Raises `SealedError` in any process but an evaluation process, before anything is recorded.
    """
    permit = TestPermit(dataset.name)
    permit.check(dataset.name)
    if os.environ.get(_ROLE) != EVALUATION_PROCESS[_ROLE]:
        raise SealedError(
            "Test data can be read only in a process that was started for an evaluation."
        )
    record()
    return dataset.sealed_split(permit)


def check_test_split(dataset: Dataset, skip_unreadable: bool = False, decoded: int = 0) -> None:
    """Check that the test split can be read later.

    Raises `DataError` if it has no images, if a bundle's features or labels are invalid, if a file
    is missing (with `skip_unreadable`: if a class has no readable image), or if one of about
    `decoded` evenly spread images cannot be decoded. Returns no pixel, feature or label, so nothing
    can be chosen by them; the error names the first fault.
    Raises `SealedError` in a training process.
    """
    split = dataset.sealed_split(TestPermit(dataset.name))
    if skip_unreadable:
        check_readable(split)
    else:
        split.images.content()
    if decoded:
        split.decode_some(decoded)
