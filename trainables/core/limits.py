"""The values that a setting may have, stated in the type of its field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Limit:
    """A rule for a finite number."""

    rule: str
    """What the number must be."""
    holds: Callable[[Any], bool]
    """Whether a number follows the rule."""


PositiveInt = Annotated[int, Limit("at least 1", lambda n: n >= 1)]
FiniteFloat = Annotated[float, Limit("finite", lambda x: True)]
PositiveFloat = Annotated[float, Limit("positive and finite", lambda x: x > 0)]
NonNegativeFloat = Annotated[float, Limit("finite and not negative", lambda x: x >= 0)]
Share = Annotated[float, Limit("in [0, 1]", lambda x: 0 <= x <= 1)]
PositiveShare = Annotated[float, Limit("in (0, 1]", lambda x: 0 < x <= 1)]
ShareBelowOne = Annotated[float, Limit("in [0, 1)", lambda x: 0 <= x < 1)]


def broken_limits(record: Any, **examples: object) -> list[str]:
    """One message per field of a dataclass that breaks the limit of its type or is none of its
    literals: rule, value, and an example; by default the field's own default."""
    own: type = type(record)
    kinds, found = _kinds(own), []
    for field in fields(record):
        value, kind = getattr(record, field.name), kinds[field.name]
        if rule := _broken(kind, value):
            example = examples.get(field.name, field.default)
            fix = "" if example is MISSING else f": use e.g. {example}"
            found.append(f"{field.name} must be {rule}, got {value!r}{fix}")
    return found


@cache
def _kinds(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _broken(kind: Any, value: Any) -> str:
    """The rule that a value breaks, or an empty string."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    limits = [limit for limit in get_args(kind)[1:] if isinstance(limit, Limit)]
    return next((x.rule for x in limits if not (math.isfinite(value) and x.holds(value))), "")
