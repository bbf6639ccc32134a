"""The seal on test data.

The test split decides nothing: it is read once, after the search, to report the winner. A data
set hands it out only against a `TestPermit`; a permit is made here only, after the read has been
recorded, or to look whether the split can be read at all, of which nothing but a fault is told; and
a process that trains trials is sealed, so that no method, data set or space running in it can
obtain one. `search/evaluation/run.py` is the only module that may import `read_test_split` (an
architecture test enforces this).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from trainables.data.base import Dataset, SealedError, Split

_SEAL = "FEWSHOT_TEST_SPLIT_SEALED"


@dataclass(frozen=True)
class TestPermit:
    """Leave to read one data set's test split, once the read has been recorded."""

    __test__ = False  # not a test class, whatever its name suggests to pytest

    dataset: str
    """Registry name of the data set."""

    def check(self, dataset: str) -> None:
        """Raises `SealedError` for another data set's permit or inside a sealed process."""
        if os.environ.get(_SEAL):
            raise SealedError(
                "Test data cannot be read in a process that trains trials: the objective of a "
                "search is validation data. Test figures come from the evaluation at its end."
            )
        if dataset != self.dataset:
            raise SealedError(f"A permit for '{self.dataset}' does not open '{dataset}'.")


def seal_process() -> None:
    """Refuse test data in this process, and in those that it starts, from now on."""
    os.environ[_SEAL] = "1"


def read_test_split(dataset: Dataset, record: Callable[[], None]) -> Split:
    """The test split. `record` must write down the read and return before any data is given.

    Raises `SealedError` in a sealed process, before anything is recorded.
    """
    permit = TestPermit(dataset.name)
    permit.check(dataset.name)
    record()
    return dataset.sealed_split(permit)


def check_test_split(dataset: Dataset, all_there: bool = True, decoded: int = 0) -> None:
    """Whether the test split can be read when its time comes: raises `DataError` where it has no
    images, where features or labels of a bundle are unfit, with `all_there` where a file is
    missing, and where one of about `decoded` images, evenly spread, cannot be decoded.

    The seal holds, although test rows are looked at: nothing is kept, no pixel, no feature and no
    label of a class is given to the caller, and so nothing can be chosen by them. What is said
    names the first fault. Raises `SealedError` in a sealed process.
    """
    split = dataset.sealed_split(TestPermit(dataset.name))
    if all_there:
        split.images.content()
    if decoded:
        split.decode_some(decoded)
