"""The values of the options of `search.run`: how each is parsed, by name or by its field's type."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from search.terminal import parser as parsing
from search.terminal.notify import webhook
from trainables.core.files import expanded, read_text
from trainables.data.registry import BASE_TASKS, PREFIXES
from trainables.fields import read_value


def names(value: str) -> list[str]:
    """Parse names separated by commas; `all11` expands to the eleven benchmarks. Paths of
    existing files may contain commas."""
    parts, found = [part for part in value.split(",") if part.strip()], list[str]()
    while parts:
        longest = range(len(parts), 1, -1)
        taken = next((n for n in longest if _is_path(",".join(parts[:n]))), 1)
        name = ",".join(parts[:taken])
        found += BASE_TASKS if name == "all11" else (parsing.text(name),)
        del parts[:taken]
    return found


def _is_path(spec: str) -> bool:
    """Whether a data set's specification contains an existing path."""
    path = next((spec.removeprefix(p) for p in PREFIXES if spec.startswith(p)), "")
    return bool(path) and os.path.exists(expanded(path))


def shots(value: str) -> str | tuple[int, ...]:
    """Parse numbers of shots, or `all`."""
    if value.strip() == "all":
        return "all"
    try:
        return parsing.integers(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or all") from None


def setting(value: str) -> tuple[str, Any]:
    """Parse FIELD=VALUE."""
    name, text = _field_and_text(value)
    return name, read_value(text)


def interval(value: str) -> tuple[str, str]:
    """Parse FIELD=LOW:HIGH; the numbers are read when the field is known."""
    return _field_and_text(value)


def several(value: str) -> tuple[str, tuple[Any, ...]]:
    """Parse FIELD=VALUE,VALUE,... or FIELD=VALUE|VALUE|..."""
    name, text = _field_and_text(value)
    separator = "|" if "|" in text else ","
    return name, tuple(read_value(part.strip()) for part in text.split(separator))


def configurations(value: str) -> str:
    """Check what names configurations; JSON may be long."""
    return value if value.lstrip().startswith(("[", "{")) else parsing.text(value)


def lines(value: str) -> list[str]:
    """Read a file of names, one per line; a JSON list is taken as it is."""
    text = value
    if not value.lstrip().startswith("["):
        try:
            text = json.dumps(read_text(expanded(parsing.text(value))).splitlines())
        except OSError as error:
            raise argparse.ArgumentTypeError(
                f"must be a file with one name per line, got {parsing.quoted(value)} ({error})"
            ) from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not found or not all(isinstance(name, str) for name in found):
        raise argparse.ArgumentTypeError(
            f"must have one name per line, got {parsing.quoted(value)}"
        )
    return [name.strip() for name in found]


def _field_and_text(value: str) -> tuple[str, str]:
    name, equals, text = value.partition("=")
    if not (equals and name.strip()):
        raise argparse.ArgumentTypeError(
            f"must be FIELD=VALUE, e.g. epochs=20, got {parsing.quoted(value)}"
        )
    return name.strip(), text


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "datasets": names,
    "shots": shots,
    "set": setting,
    "range": interval,
    "choice": several,
    "grid": several,
    "enqueue": configurations,
    "plugin": parsing.text,
    "prompt": str,  # the rules of templates are those of the task
    "class_names": lines,
    "notify": webhook,
    "time_budget": parsing.duration,
    "storage": parsing.location,
    "init_from": parsing.location,
    "str": parsing.text,
    "Protocol": parsing.text,
    "Validation": parsing.text,
    "Objective": parsing.text,
    "str | None": parsing.text,
    "int": parsing.integer,
    "int | None": parsing.integer,
    "float": parsing.number,
    "float | None": parsing.number,
    "tuple[int, ...]": parsing.integers,
}
"""Parsers of options, by name or by the type of the field."""
