"""Tensors of several objects in one dictionary, distinguished by prefixes of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

Record = TypeVar("Record")


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def numbered(
    parts: Iterable[tuple[Mapping[str, Tensor], Record]],
) -> tuple[dict[str, Tensor], list[Record]]:
    """Join objects that consist of tensors and a record: tensors are prefixed by the object's
    number, as in `0/weight`; records are listed in order."""
    tensors: dict[str, Tensor] = {}
    records = []
    for number, (own, record) in enumerate(parts):
        tensors |= {f"{number}/{name}": tensor for name, tensor in own.items()}
        records.append(record)
    return tensors, records


def split_numbered(
    tensors: Mapping[str, Tensor], records: Sequence[Record]
) -> list[tuple[dict[str, Tensor], Record]]:
    """Return the objects that `numbered` has joined."""
    return [(under(tensors, f"{number}/"), record) for number, record in enumerate(records)]
