"""Every setting of every method by name: its type, its docstring, its value."""

from __future__ import annotations

from typing import Any

import pytest

from trainables.fields import Field, fields_of, values_of, with_values
from trainables.methods.base import TaskFacts
from trainables.methods.registry import METHODS
from trainables.methods.taskres import TaskResConfig
from trainables.trial import TrialConfig


def config(method: str) -> TrialConfig:
    return TrialConfig(
        method, "paper", *METHODS[method].preset("paper", TaskFacts("digits", 4, 40))
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_field_is_documented_and_keeps_its_type(method: str) -> None:
    found, values = fields_of(method), values_of(config(method))
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].doc, name
        assert found[name].convert(value) == value
        assert type(found[name].convert(value)) is type(value), name


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("alpha", 1, 1.0),
        ("epochs", 1e2, 100),
        ("learn_alpha", True, True),
        ("decay", "step", "step"),
    ],
)
def test_values_get_the_fields_type(name: str, value: Any, expected: Any) -> None:
    found = fields_of("taskres")[name].convert(value)
    assert found == expected
    assert type(found) is type(expected)
    assert values_of(with_values(config("taskres"), {name: found}))[name] == expected


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("alpha", "x", "a finite number, got x"),
        ("alpha", float("nan"), "a finite number"),
        ("alpha", True, "a finite number, got true"),
        ("epochs", 1.5, "a whole number, got 1.5"),
        ("learn_alpha", 1, "false or true, got 1"),
        ("residual", "txt", "text, image or both, got txt"),
    ],
)
def test_other_values_are_refused(name: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        fields_of("taskres")[name].convert(value)
    assert told in str(caught.value)


def test_text_may_look_like_a_number() -> None:
    assert Field(str, "").convert(7) == "7"


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(KeyError, match="alfa"):
        with_values(config("taskres"), {"alfa": 1})
    assert with_values(config("taskres"), {"alpha": 2.0}).method_config == TaskResConfig(alpha=2.0)
