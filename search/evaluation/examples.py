"""A few test images on which the winner and the zero-shot model differ: `examples.arrow`.

They are taken while the evaluation reads the test split, so that a report need not read it again.
An Arrow IPC file with a row per image, see `Example`; `evaluation.json` has its checksum.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from search.evaluation.predictions import (
    DamagedFileError,
    ModelPredictions,
    PredictionTable,
    read_file_of,
)
from search.evaluation.record import Evaluation
from trainables.core.storage import Storage
from trainables.data.base import FeatureRows, Images

EXAMPLES = "examples.arrow"
MOST = 12
"""Images of each kind (now right, now wrong) kept per sweep, but at least one per table."""
SIDE = 96
"""Largest number of pixels on a kept image's longer side."""


@dataclass(frozen=True)
class Example:
    """A test image that one of two models classifies correctly."""

    target: str
    """Whose test split it is from."""
    part: str
    """Which part of it."""
    shots: int
    """Training images per class of the winner."""
    seed: int
    """Seed of the winner's draw."""
    file: str
    """The image's name, or empty."""
    truth: str
    """Its class."""
    before: str
    """The zero-shot model's prediction."""
    after: str
    """The winner's prediction."""
    png: bytes
    """The image, at most `SIDE` pixels large."""

    @property
    def gained(self) -> bool:
        """Whether the winner is the correct one."""
        return self.after == self.truth


def take_examples(
    table: PredictionTable,
    images: Images,
    most: int,
    before: ModelPredictions,
    after: ModelPredictions,
) -> list[Example]:
    """At most `most` images of each kind, evenly spread over all of that kind in the order of the
    split, so that they are not a selection. `images` are the table's."""
    if isinstance(images, FeatureRows):
        return []
    was, now = table.right(before), table.right(after)
    rows = [*_spread(~was & now, most), *_spread(was & ~now, most)]
    return [
        Example(
            target=table.target,
            part=table.part,
            shots=after.shots,
            seed=after.seed,
            file=table.files[row] if table.files else "",
            truth=table.classes[table.truth[row]],
            before=table.classes[before.prediction[row]],
            after=table.classes[after.prediction[row]],
            png=thumbnail(images.read(row)),
        )
        for row in rows
    ]


def thumbnail(image: Tensor) -> bytes:
    """uint8 [3, h, w] -> PNG with no side longer than `SIDE`; small images keep their size."""
    small = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "png", optimize=True)
    return stream.getvalue()


def encode_examples(examples: Sequence[Example]) -> bytes:
    """The file with these images."""
    schema = pa.schema([(f.name, _KINDS[str(f.type)]) for f in fields(Example)])
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, schema) as file:
        file.write_table(pa.Table.from_pylist([asdict(example) for example in examples], schema))
    return stream.getvalue()


def decode_examples(data: bytes) -> list[Example]:
    """The inverse of `encode_examples`; raises `DamagedFileError`."""
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as file:
            return [Example(**row) for row in file.read_all().to_pylist()]
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DamagedFileError(f"'{EXAMPLES}' cannot be read ({error}).") from error


def read_examples(sweep: Storage, found: Evaluation) -> list[Example]:
    """The images of an evaluation. Raises `DamagedFileError` and `StorageError`."""
    return decode_examples(read_file_of(sweep, found, EXAMPLES))


_KINDS: dict[str, pa.DataType] = {"str": pa.string(), "int": pa.int64(), "bytes": pa.binary()}


def _spread(wanted: np.ndarray, most: int) -> list[int]:
    rows = np.flatnonzero(wanted)
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
    return [int(row) for row in rows[places]]
