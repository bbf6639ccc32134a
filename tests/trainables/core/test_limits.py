"""Limits in types: what is reported for each kind, and the example."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from trainables.core.limits import (
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
    ShareBelowOne,
    broken_limits,
)


@dataclass(frozen=True)
class Settings:
    size: PositiveInt
    start: FiniteFloat = -1.0
    rate: PositiveFloat = 0.1
    weight: NonNegativeFloat = 0.0
    share: Share = 1.0
    part: PositiveShare = 1.0
    momentum: ShareBelowOne = 0.0
    side: Literal["left", "right"] = "left"
    free: int = -3


def test_values_at_the_bounds_are_allowed() -> None:
    assert broken_limits(Settings(1, share=0.0)) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", 0, "size must be at least 1, got 0: use e.g. 8"),
        ("start", float("inf"), "start must be finite, got inf: use e.g. -1.0"),
        ("rate", 0.0, "rate must be positive and finite, got 0.0: use e.g. 0.1"),
        ("rate", float("nan"), "rate must be positive and finite, got nan: use e.g. 0.1"),
        ("weight", -0.5, "weight must be finite and not negative, got -0.5: use e.g. 0.0"),
        ("share", 1.5, "share must be in [0, 1], got 1.5: use e.g. 1.0"),
        ("part", 0.0, "part must be in (0, 1], got 0.0: use e.g. 1.0"),
        ("momentum", 1.0, "momentum must be in [0, 1), got 1.0: use e.g. 0.0"),
        ("side", "top", "side must be one of left, right, got 'top': use e.g. left"),
    ],
)
def test_messages(field: str, value: Any, message: str) -> None:
    assert broken_limits(Settings(**{"size": 1, field: value}), size=8) == [message]


def test_without_default_and_example_there_is_no_fix() -> None:
    assert broken_limits(Settings(0)) == ["size must be at least 1, got 0"]
