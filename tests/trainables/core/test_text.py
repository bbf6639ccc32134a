"""The message for an unknown name, and numbers in words."""

from __future__ import annotations

import pytest

from trainables.core.text import amount, did_you_mean
from trainables.data.base import DataError
from trainables.data.registry import open_dataset


def test_a_near_miss_is_named() -> None:
    assert did_you_mean("space", "rtm", ["taskres", "rmt"]) == (
        "There is no space 'rtm'. Known: rmt, taskres. Did you mean 'rmt'?"
    )


def test_no_guess_where_nothing_is_near() -> None:
    found = did_you_mean("space", "quux", iter(["taskres", "rmt"]))
    assert found == "There is no space 'quux'. Known: rmt, taskres."


def test_unknown_data_sets_get_it() -> None:
    with pytest.raises(DataError, match=r"no data set 'digit'\. .*Did you mean 'digits'\?"):
        open_dataset("digit")
    with pytest.raises(DataError, match=r"no data set 'imagenet-a'.*Did you mean 'imagenet_a'\?"):
        open_dataset("imagenet-a")


def test_one_thing_is_not_several() -> None:
    words = [amount(number, "trial") for number in (0, 1, 2, 1000)]
    assert words == ["0 trials", "1 trial", "2 trials", "1,000 trials"]
