"""The data sets that can be named on the command line."""

from __future__ import annotations

from trainables.data.base import DataError, Dataset
from trainables.data.digits import Digits
from trainables.suggest import did_you_mean

DATASETS: dict[str, Dataset] = {
    "digits": Digits("digits"),
    "digits-rotated": Digits("digits-rotated", half_turns=1),
}


def open_dataset(name: str) -> Dataset:
    """The data set of that name; raises `DataError` with the names there are."""
    try:
        return DATASETS[name]
    except KeyError:
        raise DataError(did_you_mean("data set", name, DATASETS)) from None
