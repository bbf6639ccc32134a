"""Configurations that a sweep runs first: from a file, another sweep, or the command line."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from search.core.objectives import ranked
from search.core.problems import UsageError
from search.core.sweep_folder import find_sweep
from trainables.core.files import expanded, read_regular
from trainables.core.records import RecordError, parse_json
from trainables.fields import Value, read_value

BEST = 5
"""Number of trials that are taken from another sweep."""


def read_configurations(where: str, storage: str) -> tuple[Mapping[str, Value], ...]:
    """Read `--enqueue`: a JSON text, a file (.json or .csv), or NAME or NAME:COUNT for the best
    trials of a sweep in `storage`. Raises `UsageError` and `StorageError`."""
    if where.lstrip().startswith(("[", "{")):
        return _from_json(where.encode(), where)
    path = expanded(where)
    if path.suffix in (".json", ".csv"):
        try:
            data = read_regular(path)
        except OSError as error:
            raise _invalid(where, f"cannot be read ({error})") from None
        return _from_json(data, where) if path.suffix == ".json" else _from_csv(data, where)
    name, _, count = where.partition(":")
    if count and not (count.isdecimal() and int(count)):
        raise _invalid(where, f"has the count '{count}'")
    results = find_sweep(name, storage).results().values()
    best = ranked(results)[: int(count or BEST)]
    if not best:
        raise _invalid(where, "has no complete trial")
    return tuple(result.parameters for result in best)


def _from_json(data: bytes, where: str) -> tuple[Mapping[str, Value], ...]:
    try:
        plain = parse_json(data)
    except RecordError as error:
        raise _invalid(where, f"is no JSON: {error}") from None
    rows = [plain] if isinstance(plain, dict) else plain
    if not (isinstance(rows, list) and rows and all(map(_is_configuration, rows))):
        raise _invalid(where, "is no list of objects with plain values")
    return tuple(rows)


def _is_configuration(row: object) -> bool:
    return (
        isinstance(row, dict)
        and bool(row)
        and all(isinstance(value, float | int | str | bool) for value in row.values())
    )


def _from_csv(data: bytes, where: str) -> tuple[Mapping[str, Value], ...]:
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _invalid(where, f"is no CSV in UTF-8 ({error})") from None
    found = []
    for row in rows:
        if None in row or not all(row):
            raise _invalid(where, f"has a row without a name for every value: {list(row.values())}")
        found.append({name.strip(): read_value(text.strip()) for name, text in row.items() if text})
    if not found or not all(found):
        raise _invalid(where, "has an empty row or no rows")
    return tuple(found)


def _invalid(where: str, why: str) -> UsageError:
    return UsageError(
        [
            "--enqueue must be a file of configurations (.json: a list of objects, .csv: a column "
            f"per field), or a sweep's name, alone or with a count (NAME:10), and '{where[:60]}' "
            f"{why}."
        ]
    )
