"""What the evaluation's models said of every test image: `predictions.arrow`.

An Arrow IPC file, zstd inside: a record batch for each model and part of a test split, a row for
each image. Columns: `label`, `dataset`, `shots`, `seed` say which model it was (see
`search.evaluation.record.Score`); `target`, `part` whose images; `image` is the position in the
test split as it was read, `file` the name that the data set gives the image (null where it has
none); `truth` and `prediction` are positions in the part's class names, which stand in the
metadata; `confidence` is the softmax probability of the prediction, a fraction.

Notation: n images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from search.evaluation.prediction_table import ModelPredictions, PredictionTable
from search.evaluation.record import Evaluation, Part
from trainables.storage import Storage

PREDICTIONS = "predictions.arrow"

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


def write_predictions(sweep: Storage, found: Evaluation, sheets: Sequence[PredictionTable]) -> None:
    """Write the file of the evaluation `found`, whose sheets these are. Raises `StorageError`."""
    words = _Words(sheets)
    classes = [[sheet.target, sheet.part, list(sheet.classes)] for sheet in sheets]
    schema = _SCHEMA.with_metadata({"evaluation": found.identity, "classes": json.dumps(classes)})

    def write(path: object) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(path), schema, options=options) as file:
            for sheet in sheets:
                for answers in sheet.answers:
                    columns = _columns(sheet, answers, words)
                    file.write_batch(pa.record_batch(columns, schema=schema))

    sweep.write_with(PREDICTIONS, write)


def read_predictions(sweep: Storage, found: Evaluation) -> list[PredictionTable] | None:
    """The sheets of this evaluation; None where there are none: an older version made it, or the
    file is damaged or another evaluation's. Raises `StorageError`."""
    try:
        with pa.ipc.open_file(pa.BufferReader(sweep.read(PREDICTIONS))) as file:
            metadata = file.schema.metadata or {}
            if metadata[b"evaluation"].decode() != found.identity:
                return None
            classes = {(t, p): tuple(names) for t, p, names in json.loads(metadata[b"classes"])}
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        return _sheets(batches, classes)
    except (FileNotFoundError, KeyError, IndexError, TypeError, ValueError, pa.ArrowException):
        return None


class _Words:
    """The file's dictionaries: an Arrow file has one a column, for all its batches."""

    def __init__(self, sheets: Sequence[PredictionTable]) -> None:
        answers = [a for sheet in sheets for a in sheet.answers]
        words: dict[str, list[str]] = {
            "label": [a.label for a in answers],
            "dataset": [a.dataset for a in answers],
            "target": [s.target for s in sheets],
            "part": [s.part for s in sheets],
            "file": [name for s in sheets for name in s.files],
        }
        self._arrays = {
            key: pa.array(list(dict.fromkeys(values)), pa.string()) for key, values in words.items()
        }
        self._places = {
            key: {word: i for i, word in enumerate(array.to_pylist())}
            for key, array in self._arrays.items()
        }

    def constant(self, key: str, word: str, rows: int) -> pa.Array:
        """The same word in every row."""
        places = np.full(rows, self._places[key][word], np.int32)
        return pa.DictionaryArray.from_arrays(places, self._arrays[key])

    def files(self, names: Sequence[str], rows: int) -> pa.Array:
        """A name a row, or null where there are none."""
        places = self._places["file"]
        found = pa.array([places[n] for n in names] if names else [None] * rows, pa.int32())
        return pa.DictionaryArray.from_arrays(found, self._arrays["file"])


def _columns(sheet: PredictionTable, answers: ModelPredictions, words: _Words) -> list[pa.Array]:
    rows = len(sheet.truth)
    return [
        words.constant("label", answers.label, rows),
        words.constant("dataset", answers.dataset, rows),
        pa.array(np.full(rows, answers.shots, np.int32)),
        pa.array(np.full(rows, answers.seed, np.int64)),
        words.constant("target", sheet.target, rows),
        words.constant("part", sheet.part, rows),
        pa.array(sheet.images),
        words.files(sheet.files, rows),
        pa.array(sheet.truth),
        pa.array(answers.prediction),
        pa.array(answers.confidence),
    ]


def _sheets(
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
            () if group[0].column("file").null_count else _files(group[0]),
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


def _files(batch: pa.RecordBatch) -> tuple[str, ...]:
    return tuple(batch.column("file").to_pylist())
