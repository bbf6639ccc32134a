"""When a parameter has an effect, given the values of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.fields import Value
from trainables.methods.masking.layers import WITH_PATCH


def _either(values: tuple[Value, ...]) -> str:
    return " or ".join(
        str(value).lower() if isinstance(value, bool) else str(value) for value in values
    )


@dataclass(frozen=True)
class Condition:
    """Whether a parameter is suggested, given the values of those before it. Otherwise its field
    keeps the value of trial 0."""

    words: str
    """The condition in words, e.g. `if rule is sign`; empty if it always holds."""
    names: tuple[str, ...]
    """The fields that it depends on."""
    holds: Callable[[Mapping[str, Any]], bool]
    """The condition; its argument has the value of every field."""


always = Condition("", (), lambda chosen: True)
"""The condition of a parameter that every trial has."""


def unless(name: str, *values: Value) -> Condition:
    """The condition that the field `name` has none of `values`."""
    return Condition(
        f"unless {name} is {_either(values)}",
        (name,),
        lambda chosen: chosen[name] not in values,
    )


def only_if(name: str, *values: Value) -> Condition:
    """The condition that the field `name` has one of `values`."""
    return Condition(
        f"if {name} is {_either(values)}",
        (name,),
        lambda chosen: chosen[name] in values,
    )


def below(name: str, bound: float) -> Condition:
    """The condition that the field `name` is less than `bound`."""
    return Condition(f"if {name} < {bound:g}", (name,), lambda chosen: bool(chosen[name] < bound))


CONDITIONS: Mapping[str, Condition] = {
    "warmup_lr": unless("warmup_epochs", 0),
    "momentum": only_if("optimiser", "sgd"),
    "eps": unless("optimiser", "sgd"),
    "min_lr": unless("decay", "none"),
    # A learned alpha is a tanh: it starts below 1.
    "learn_alpha": below("alpha", 1),
    "alpha": unless("keep_base", False),
    "leak": only_if("rule", "gradient-dropout", "sign"),
    "leak_kl": only_if("rule", "sign"),
    "temperature": unless("rule", "none"),
    "teacher_share": unless("rule", "none"),
    "patch_embedding": unless("masked", *WITH_PATCH),
}
"""Field -> when it has an effect, for fields that do not always have one. A condition on a field
that the method lacks is ignored."""
