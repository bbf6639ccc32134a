"""A few test images on which the winner and the zero-shot model differ: `examples.arrow`.

They are taken while the test split is read for the evaluation, so that a report need not read it
again. An Arrow IPC file with a row for each image; see `Example`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from search.evaluation.prediction_table import ModelPredictions, PredictionTable
from search.evaluation.record import Evaluation, Label
from trainables.data.base import FeatureRows, Images
from trainables.storage import Storage

EXAMPLES = "examples.arrow"
MOST = 12
"""Images of each kind (now right, now wrong) that are kept of a whole sweep, or one a sheet."""
SIDE = 96
"""Pixels on a kept image's longer side, at most."""


@dataclass(frozen=True)
class Example:
    """A test image that one of two models gets right."""

    target: str
    """Whose test split it is from."""
    part: str
    """Which part of it."""
    shots: int
    """Images a class that the winner was trained with."""
    seed: int
    """Of the winner's draw."""
    file: str
    """The image's name, or empty."""
    truth: str
    """Its class."""
    before: str
    """What the zero-shot model says."""
    after: str
    """What the winner says."""
    png: bytes
    """The image, reduced to `SIDE`."""

    @property
    def gained(self) -> bool:
        """Whether the winner is the one that is right."""
        return self.after == self.truth


def take_examples(sheet: PredictionTable, images: Images, most: int) -> list[Example]:
    """At most `most` images of each kind, evenly spread over all of that kind in the order of the
    split: not a choice of the most telling. Of the winner with the most shots, on the first draw
    that was judged. `images` are the sheet's."""
    pair = _pair(sheet)
    if pair is None or isinstance(images, FeatureRows):
        return []
    before, after = pair
    was, now = sheet.right(before), sheet.right(after)
    rows = [*_spread(~was & now, most), *_spread(was & ~now, most)]
    return [
        Example(
            target=sheet.target,
            part=sheet.part,
            shots=after.shots,
            seed=after.seed,
            file=sheet.files[row] if sheet.files else "",
            truth=sheet.classes[sheet.truth[row]],
            before=sheet.classes[before.prediction[row]],
            after=sheet.classes[after.prediction[row]],
            png=thumbnail(images.read(row)),
        )
        for row in rows
    ]


def thumbnail(image: Tensor) -> bytes:
    """uint8 [3, h, w] -> PNG, no side longer than `SIDE`; small images stay as they are."""
    small = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "png", optimize=True)
    return stream.getvalue()


def write_examples(sweep: Storage, found: Evaluation, examples: Sequence[Example]) -> None:
    """Write the file; raises `StorageError`."""
    metadata = {"evaluation": found.identity}
    schema = pa.schema([(f.name, _KINDS[str(f.type)]) for f in fields(Example)], metadata)
    table = pa.Table.from_pylist([asdict(example) for example in examples], schema)

    def write(path: object) -> None:
        with pa.ipc.new_file(str(path), schema) as file:
            file.write_table(table)

    sweep.write_with(EXAMPLES, write)


def read_examples(sweep: Storage, found: Evaluation) -> list[Example]:
    """Those of this evaluation, if there are any that can be read. Raises `StorageError`."""
    try:
        with pa.ipc.open_file(pa.BufferReader(sweep.read(EXAMPLES))) as file:
            if file.schema.metadata[b"evaluation"].decode() != found.identity:
                return []
            return [Example(**row) for row in file.read_all().to_pylist()]
    except (FileNotFoundError, KeyError, TypeError, ValueError, pa.ArrowException):
        return []


_KINDS: dict[str, pa.DataType] = {"str": pa.string(), "int": pa.int64(), "bytes": pa.binary()}


def _pair(sheet: PredictionTable) -> tuple[ModelPredictions, ModelPredictions] | None:
    """The zero-shot model and the winner on the same draw."""
    order: dict[Label, int] = {"zero-shot": 0, "winner": 1}
    draws: dict[tuple[str, int, int], dict[int, ModelPredictions]] = {}
    for answers in sheet.answers:
        if answers.label in order:
            key = (answers.dataset, answers.shots, answers.seed)
            draws.setdefault(key, {})[order[answers.label]] = answers
    found = [pair for pair in draws.values() if len(pair) == 2]
    best = max(found, key=lambda pair: pair[1].shots, default=None)
    return (best[0], best[1]) if best else None


def _spread(wanted: np.ndarray, most: int) -> list[int]:
    rows = np.flatnonzero(wanted)
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
    return [int(row) for row in rows[places]]
