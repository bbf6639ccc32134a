"""Dictionaries of tensors: in safetensors files of a storage, with a checksum over tensors and
metadata; and of several objects in one, distinguished by prefixes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainables.core.storage import Storage

_CHECKSUM = "sha256"

Content = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors on the CPU, and metadata."""


def write_tensors(
    folder: Storage, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file atomically; raises `StorageError`."""
    whole = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    folder.write_with(name, partial(_write, whole, dict(metadata)))


def write_checked(
    folder: Storage, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """`write_tensors` with a checksum for `read_checked`."""
    checksum = _checksum(tensors, metadata)
    write_tensors(folder, name, tensors, dict(metadata) | {_CHECKSUM: checksum})


def read_tensors(folder: Storage, name: str) -> Content | None:
    """The content of a file; None if it is missing or unreadable. Raises `StorageError`."""
    try:
        with folder.as_local_file(name) as path, safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (FileNotFoundError, SafetensorError):
        return None


def read_checked(folder: Storage, name: str) -> Content | None:
    """What `write_checked` wrote; None if a single bit differs, which safetensors itself does not
    detect. Raises `StorageError`."""
    found = read_tensors(folder, name)
    if found is None:
        return None
    tensors, metadata = found
    checksum = metadata.pop(_CHECKSUM, "")
    return (tensors, metadata) if checksum == _checksum(tensors, metadata) else None


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    shapes = {key: [str(t.dtype), *t.shape] for key, t in tensors.items()}
    digest = hashlib.sha256(json.dumps([dict(metadata), shapes], sort_keys=True).encode())
    for key in sorted(tensors):
        flat = tensors[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """`save_file`, with its errors as `OSError`: they come from the disk."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


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
