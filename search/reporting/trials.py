"""Writes all trials to one table, `trials.parquet`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from search.core.results import Result
from search.reporting.source import Source
from trainables.trial import TrialConfig

_FACTS: dict[str, pa.DataType] = {
    "number": pa.int64(),
    "state": pa.string(),
    "value": pa.float64(),
    "train_seconds": pa.float64(),
    "begun": pa.float64(),
    "ended": pa.float64(),
    "host": pa.string(),
    "failures": pa.int64(),
    "reason": pa.string(),
}
"""Fields of a result that are copied unchanged; accuracies are fractions, times are seconds."""


def trials_parquet(source: Source) -> bytes:
    """Build a table with one row per trial.

    Columns: the fields in `_FACTS`, `values` (list, the objective after each part), `param.NAME`
    (sampled), `config.NAME` (resolved) and `metric.NAME`. Name and id of the sweep are in the
    metadata.
    """
    results = [r for _, r in sorted(source.results.items())]
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(r, name) for r in results], kind) for name, kind in _FACTS.items()
    }
    columns["values"] = pa.array([list(r.values) for r in results], pa.list_(pa.float64()))
    columns |= _spread("param", [r.parameters for r in results])
    columns |= _spread("config", [_flat(r) for r in results])
    columns |= _spread("metric", [r.metrics for r in results])
    table = pa.table(columns)
    about = {"sweep": source.name, "id": source.record.id}
    stream = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(about), stream, compression="zstd")
    return stream.getvalue()


def _flat(result: Result) -> dict[str, object]:
    return TrialConfig.from_dict(result.config).flat()


def _spread(prefix: str, rows: Sequence[dict[str, Any]]) -> dict[str, pa.Array]:
    """Build one column per key, null for rows without it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {f"{prefix}.{name}": _column([row.get(name) for row in rows]) for name in names}


def _column(values: Sequence[Any]) -> pa.Array:
    """Build a column: numeric if all values are, else text, with nested values as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if len(kinds) <= 1 and kinds <= {bool, int, str}:
        return pa.array(values)
    return pa.array([None if v is None else _text(v) for v in values], pa.string())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
