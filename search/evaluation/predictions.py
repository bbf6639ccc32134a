"""Predictions on test images, and their file `predictions.arrow`.

The file is an Arrow IPC file with zstd compression: a record batch per model and part of a test
split, one row per image. Columns: `label`, `dataset`, `shots`, `seed` identify the model (see
`search.evaluation.record.Score`); `target` and `part` identify the images; `image` is the position
in the test split as it was read, `file` the data set's name for the image (null if it has none);
`truth` and `prediction` are positions in the part's class names, which are in the metadata;
`confidence` is the softmax probability of the prediction. `evaluation.json` has its checksum.

Notation: n images, c classes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from search.evaluation.record import Evaluation, Label
from trainables.core.protocols import Part
from trainables.core.storage import Storage
from trainables.data.base import FeatureRows, Images, PixelRows
from trainables.trial import Episode

PREDICTIONS = "predictions.arrow"


class DamagedFileError(ValueError):
    """A file of an evaluation is missing, or not the one that was written with it."""


@dataclass(frozen=True)
class ModelPredictions:
    """The predictions of one model on the images of a `PredictionTable`."""

    label: Label
    """The model."""
    dataset: str
    """What it was trained on."""
    shots: int
    """Training images per class."""
    seed: int
    """Seed of its draw."""
    prediction: NDArray[np.uint16]
    """[n], positions in the table's class names."""
    confidence: NDArray[np.float32]
    """[n], the softmax probability of the prediction."""

    @property
    def model(self) -> tuple[Label, str, int]:
        """What identifies the model, whatever the draw."""
        return self.label, self.dataset, self.shots


@dataclass(frozen=True)
class PredictionTable:
    """The images of one part of a test split, with the predictions of several models."""

    target: str
    """Whose test split it is."""
    part: Part
    """Which of its images."""
    classes: tuple[str, ...]
    """Names of the classes among which images were classified."""
    images: NDArray[np.int32]
    """[n], positions in the test split as it was read."""
    files: tuple[str, ...]
    """The images' names; empty if they have none."""
    truth: NDArray[np.uint16]
    """[n], positions in `classes`."""
    answers: tuple[ModelPredictions, ...]
    """One per model and draw."""

    def right(self, answers: ModelPredictions) -> NDArray[np.bool_]:
        """[n], whether the prediction is correct."""
        return np.equal(answers.prediction, self.truth)

    def accuracy(self, answers: ModelPredictions) -> float:
        """The share of correct predictions."""
        return float(self.right(answers).mean())


def from_logits(label: Label, episode: Episode, logits: Tensor) -> ModelPredictions:
    """Predictions of a model trained on `episode`, from its logits [n, c]."""
    largest = logits.argmax(-1)
    confidence = logits.float().softmax(-1).gather(-1, largest[:, None])[:, 0]
    return ModelPredictions(
        label,
        episode.dataset,
        episode.shots,
        episode.seed,
        largest.cpu().numpy().astype(np.uint16),
        confidence.cpu().numpy(),
    )


def file_names(images: Images) -> tuple[str, ...]:
    """The images' names if they are more than positions, else empty."""
    if isinstance(images, FeatureRows | PixelRows):
        return ()
    return tuple(as_text(images.name(row)) for row in range(len(images)))


def as_text(name: str) -> str:
    """The name as valid Unicode text: file names may have bytes that are none."""
    return name.encode("utf-8", "backslashreplace").decode()


# --- the file ------------------------------------------------------------------------------------

_WORDS = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("label", _WORDS),
        ("dataset", _WORDS),
        ("shots", pa.int32()),
        ("seed", pa.int64()),
        ("target", _WORDS),
        ("part", _WORDS),
        ("image", pa.int32()),
        ("file", _WORDS),
        ("truth", pa.uint16()),
        ("prediction", pa.uint16()),
        ("confidence", pa.float32()),
    ]
)


def checksum(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def read_file_of(sweep: Storage, found: Evaluation, name: str) -> bytes:
    """A file that belongs to an evaluation, as it was written.

    Raises `StorageError`, and `DamagedFileError` if it is missing or its checksum is not the one
    that the evaluation has recorded.
    """
    try:
        data = sweep.read(name)
    except FileNotFoundError:
        raise DamagedFileError(f"'{name}' is missing. Restore it from a copy.") from None
    if checksum(data) != found.checksums.get(name):
        raise DamagedFileError(
            f"'{name}' is damaged or belongs to another evaluation: its SHA-256 is "
            f"{checksum(data)[:12]}..., recorded is {found.checksums.get(name, 'none')[:12]}. "
            "Restore it from a copy."
        )
    return data


def encode_predictions(tables: Sequence[PredictionTable]) -> bytes:
    """The file with these tables."""
    words = _Words(tables)
    classes = [[table.target, table.part, list(table.classes)] for table in tables]
    schema = _SCHEMA.with_metadata({"classes": json.dumps(classes)})
    stream = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(stream, schema, options=options) as file:
        for table in tables:
            for answers in table.answers:
                columns = _columns(table, answers, words)
                file.write_batch(pa.record_batch(columns, schema=schema))
    return stream.getvalue()


def decode_predictions(data: bytes) -> list[PredictionTable]:
    """The inverse of `encode_predictions`; raises `DamagedFileError`."""
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as file:
            named = json.loads(file.schema.metadata[b"classes"])
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        return _tables(batches, {(t, p): tuple(names) for t, p, names in named})
    except (KeyError, IndexError, TypeError, ValueError, pa.ArrowException) as error:
        raise DamagedFileError(f"'{PREDICTIONS}' cannot be read ({error}).") from error


def read_predictions(sweep: Storage, found: Evaluation) -> list[PredictionTable]:
    """The tables of an evaluation. Raises `DamagedFileError` and `StorageError`."""
    return decode_predictions(read_file_of(sweep, found, PREDICTIONS))


class _Words:
    """The file's dictionaries: an Arrow file has one per column, for all its batches."""

    def __init__(self, tables: Sequence[PredictionTable]) -> None:
        answers = [a for table in tables for a in table.answers]
        words: dict[str, list[str]] = {
            "label": [a.label for a in answers],
            "dataset": [a.dataset for a in answers],
            "target": [t.target for t in tables],
            "part": [t.part for t in tables],
            "file": [name for t in tables for name in t.files],
        }
        self._arrays = {
            key: pa.array(list(dict.fromkeys(values)), pa.string()) for key, values in words.items()
        }
        self._places = {
            key: {word: i for i, word in enumerate(array.to_pylist())}
            for key, array in self._arrays.items()
        }

    def constant(self, key: str, word: str, rows: int) -> pa.Array:
        """A column with the same word in every row."""
        places = np.full(rows, self._places[key][word], np.int32)
        return pa.DictionaryArray.from_arrays(places, self._arrays[key])

    def files(self, names: Sequence[str], rows: int) -> pa.Array:
        """A name per row, or null without names."""
        places = self._places["file"]
        found = pa.array([places[n] for n in names] if names else [None] * rows, pa.int32())
        return pa.DictionaryArray.from_arrays(found, self._arrays["file"])


def _columns(table: PredictionTable, answers: ModelPredictions, words: _Words) -> list[pa.Array]:
    rows = len(table.truth)
    return [
        words.constant("label", answers.label, rows),
        words.constant("dataset", answers.dataset, rows),
        pa.array(np.full(rows, answers.shots, np.int32)),
        pa.array(np.full(rows, answers.seed, np.int64)),
        words.constant("target", table.target, rows),
        words.constant("part", table.part, rows),
        pa.array(table.images),
        words.files(table.files, rows),
        pa.array(table.truth),
        pa.array(answers.prediction),
        pa.array(answers.confidence),
    ]


def _tables(
    batches: Sequence[pa.RecordBatch], classes: Mapping[tuple[str, str], tuple[str, ...]]
) -> list[PredictionTable]:
    grouped: dict[tuple[str, Part], list[pa.RecordBatch]] = {}
    for batch in batches:
        key = (_first(batch, "target"), _first(batch, "part"))
        grouped.setdefault(key, []).append(batch)
    return [
        PredictionTable(
            target,
            part,
            classes[target, part],
            group[0].column("image").to_numpy(),
            () if (file := group[0].column("file")).null_count else tuple(file.to_pylist()),
            group[0].column("truth").to_numpy(),
            tuple(_answers(group)),
        )
        for (target, part), group in grouped.items()
    ]


def _answers(group: Sequence[pa.RecordBatch]) -> Iterator[ModelPredictions]:
    for batch in group:
        label, dataset, shots, seed = (
            _first(batch, name) for name in ("label", "dataset", "shots", "seed")
        )
        yield ModelPredictions(
            *(label, dataset, shots, seed),
            batch.column("prediction").to_numpy(),
            batch.column("confidence").to_numpy(),
        )


def _first(batch: pa.RecordBatch, name: str) -> Any:
    return batch.column(name)[0].as_py()
