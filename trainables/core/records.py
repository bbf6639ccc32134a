"""Strict reading of JSON records into dataclasses.

A file may hold anything: another version's record, half a file, values of the wrong type. The
annotations of the dataclass define what is valid; anything else raises a `RecordError`, which names
the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from annotated_types import Ge, Le

from trainables.core.text import printable

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import CoreSchema

T = TypeVar("T")

Fraction01 = Annotated[float, Ge(0), Le(1)]
"""A share, such as an accuracy."""
Count = Annotated[int, Ge(0)]
"""A number of things."""
Positive = Annotated[int, Ge(1)]
"""A number of things of which there is at least one."""
Seconds = Annotated[float, Ge(0)]
"""A duration, or a Unix time."""

_LARGEST = 2**63 - 1


class RecordError(ValueError):
    """A record is invalid: the field, which may be any key of a file, and the rule that its value
    breaks."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(printable(f"'{field}' {problem}" if field else problem))
        self.field = field
        self.problem = problem

    def inside(self, field: str) -> RecordError:
        """The same error, for the record that holds this one in `field`."""
        return RecordError(".".join(filter(None, (field, self.field))), self.problem)


def read_record(cls: type[T], data: bytes) -> T:
    """Parse the JSON of a record; raises `RecordError`.

    Types are strict: no value is converted, except an integer where a float belongs. Unknown
    fields, NaN, infinity and integers beyond 64 bits are errors.
    """
    parse_json(data)
    return _validated(cls, data)


def read_version(cls: type[T], data: bytes, version: int) -> T:
    """Parse the JSON of a record whose field `format` must be `version`; raises `RecordError`."""
    plain = parse_json(data)
    if not isinstance(plain, dict):
        raise RecordError("", "it must be a JSON object")
    found = plain.get("format")
    if found != version:
        shown = json.dumps(found)[:20]
        raise RecordError("format", f"is {shown}, this version reads format {version}")
    return _validated(cls, data)


def parse_json(data: bytes) -> Any:
    """Parse JSON without NaN, infinity, lone surrogates and integers beyond 64 bits; raises
    `RecordError`."""
    from pydantic_core import from_json

    try:
        plain = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RecordError("", f"the file must be valid JSON in UTF-8 ({error})") from None
    if not _fits(plain):
        _check_numbers(plain, ())
    return plain


def from_plain(cls: type[T], plain: object) -> T:
    """Build a record from plain JSON types; raises `RecordError`."""
    try:
        # In JSON mode, because a strict Python tuple is no list.
        text = json.dumps(plain, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError("", f"the record must be plain JSON ({error})") from None
    return _validated(cls, text)


def _validated(cls: type[T], text: str | bytes) -> T:
    from pydantic import ValidationError

    try:
        record: T = _adapter(cast(Any, cls)).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise _first(error) from None
    return record


def from_field(cls: type[T], plain: Mapping[str, Any], field: str) -> T:
    """Build the record in a field of another one; raises `RecordError`."""
    if field not in plain:
        raise RecordError(field, "is missing")
    try:
        return from_plain(cls, plain[field])
    except RecordError as error:
        raise error.inside(field) from None


def parsed_by(parse: Callable[[object], object]) -> CoreSchema:
    """The schema of a record that `parse` builds from plain JSON types."""
    from pydantic_core import core_schema

    return core_schema.no_info_plain_validator_function(parse)


def upgraded(schema: CoreSchema, upgrade: Callable[[dict[str, Any]], dict[str, Any]]) -> CoreSchema:
    """The schema of a record whose fields had other names in earlier releases."""
    from pydantic_core import core_schema

    return core_schema.no_info_before_validator_function(
        lambda plain: _with_tuples(upgrade(plain)) if isinstance(plain, dict) else plain, schema
    )


def _with_tuples(value: Any) -> Any:
    """The value with tuples for lists: what a Python function returns is no longer JSON, and a
    strict tuple is not made of a list."""
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


@cache  # to build one takes milliseconds
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # slow, and not needed by `--help`

    return TypeAdapter(cls)


def _first(error: ValidationError) -> RecordError:
    found = error.errors(include_url=False)[0]
    inner = found.get("ctx", {}).get("error")
    where: list[int | str] = [*found["loc"]]
    if isinstance(inner, RecordError):
        return inner.inside(_path(where))
    match found["type"]:
        case "missing":
            return RecordError(_path(where), "is missing")
        case "unexpected_keyword_argument":
            return RecordError(_path(where), "is unknown to this version")
        case "value_error":
            return RecordError(_path(where), str(inner))
    rule = found["msg"].replace("Input should", "must")
    return RecordError(_path(where), f"{rule}, got {_shown(found['input'])}")


def _fits(plain: object) -> bool:
    """Whether `_check_numbers` passes; without the paths, which take most of its time."""
    values = [plain]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, float):
            if not math.isfinite(value):
                return False
        elif isinstance(value, int) and abs(value) > _LARGEST:
            return False
    return True


def _check_numbers(value: object, where: tuple[int | str, ...]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(_path(where), "must be a finite number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise RecordError(_path(where), "must be a number of at most 64 bits")
    items: Iterable[tuple[int | str, object]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        _check_numbers(inner, (*where, key))


def _path(where: Iterable[int | str]) -> str:
    """E.g. `values[2]` or `config.optim.lr`."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
