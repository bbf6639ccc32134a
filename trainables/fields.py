"""The settings of a training by name: the fields of a method's configuration, of `OptimConfig`, and
`crop_scale`.

Names are unique within a method. They are what users type, what spaces search, and the columns of
tables.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from trainables.trial import EpisodeSettings, TrialConfig

Value = float | int | str | bool
"""Value of a field."""

CROP_SCALE = "crop_scale"

Settings = TypeVar("Settings", TrialConfig, EpisodeSettings)


@dataclass(frozen=True)
class Field:
    """A setting of a training."""

    kind: Any
    """`float`, `int`, `bool`, `str` or a `Literal`."""
    doc: str
    """Its docstring, on one line."""

    @property
    def is_number(self) -> bool:
        """Whether an interval of values makes sense."""
        return self.kind in (float, int)

    @property
    def choices(self) -> tuple[Value, ...]:
        """The possible values, if there are few."""
        if self.kind is bool:
            return (False, True)
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def convert(self, value: Value) -> Value:
        """Return the value with the field's type; raises `ValueError` with the rule and the value.

        A whole number is a float where one belongs, and 1e3 a whole number; nothing else is
        converted, except that numbers become text for a field of text.
        """
        if self.choices:
            if any(value == choice and type(value) is type(choice) for choice in self.choices):
                return value
            raise ValueError(f"must be {_either(self.choices)}, got {_shown(value)}")
        if self.kind is str:
            return _shown(value)
        if isinstance(value, str | bool) or not math.isfinite(value):
            raise ValueError(f"must be a finite number, got {_shown(value)}")
        if self.kind is int and value != int(value):
            raise ValueError(f"must be a whole number, got {_shown(value)}")
        return self.kind(value)  # type: ignore[no-any-return]


def fields_of(method: str) -> Mapping[str, Field]:
    """The settings of a method, by name: its own, then those of the training."""
    from trainables.methods.registry import METHODS  # which loads torch

    config: type = METHODS[method].Config
    return _fields_of(config)


@cache
def _fields_of(config: type) -> Mapping[str, Field]:
    from trainables.core.optim import OptimConfig

    found: dict[str, Field] = {}
    for record in (config, OptimConfig):
        kinds, docs = get_type_hints(record), field_docs(record)
        own = {
            field.name: Field(kinds[field.name], docs.get(field.name, ""))
            for field in fields(record)
        }
        found |= own
    docs = field_docs(TrialConfig)
    return found | {CROP_SCALE: Field(float, docs[CROP_SCALE])}


def read_value(text: str) -> Value:
    """Parse a number, true, false, or text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


@cache  # parsing takes milliseconds
def field_docs(record: type) -> dict[str, str]:
    """The docstring of every field of a dataclass, inherited ones included, on one line."""
    found: dict[str, str] = {}
    for owner in reversed(record.__mro__):
        if not is_dataclass(owner):
            continue
        (tree,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(tree, ast.ClassDef)
        found |= {
            field.target.id: " ".join(str(doc.value.value).split())
            for field, doc in zip(tree.body, tree.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
        }
    return found


def values_of(settings: TrialConfig | EpisodeSettings) -> dict[str, Any]:
    """Field -> value, of one stage."""
    own = vars(settings.method_config) | vars(settings.optim)
    return own | {CROP_SCALE: settings.crop_scale}


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The same with other values of some fields; raises `KeyError` for an unknown one."""
    known = values_of(settings)
    if unknown := values.keys() - known.keys():
        raise KeyError(*sorted(unknown))
    method, optim = (
        {name: value for name, value in values.items() if name in vars(part)}
        for part in (settings.method_config, settings.optim)
    )
    return replace(
        settings,
        method_config=replace(settings.method_config, **method),
        optim=replace(settings.optim, **optim),
        crop_scale=values.get(CROP_SCALE, settings.crop_scale),
    )


def _either(values: tuple[Any, ...]) -> str:
    *others, last = map(_shown, values)
    return f"{', '.join(others)} or {last}" if others else last


def _shown(value: Value) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)
