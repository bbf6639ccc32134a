"""Predictions and example images, in files and as they are taken."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from search.evaluation.examples import (
    EXAMPLES,
    SIDE,
    read_examples,
    take_examples,
    thumbnail,
    write_examples,
)
from search.evaluation.prediction_table import (
    ModelPredictions,
    PredictionTable,
    file_names,
    from_logits,
)
from search.evaluation.predictions import PREDICTIONS, read_predictions, write_predictions
from search.evaluation.record import Evaluation, Label
from trainables.data.base import FeatureRows, PixelRows
from trainables.data.image_files import ImageFiles
from trainables.storage import LocalStorage
from trainables.trial import Episode

FOUND = Evaluation(3, 0.5, (2, 3), "few-shot", ())
CLASSES = ("cat", "<b>dog</b>", "cat")  # two classes may have one name


def answers(label: Label, said: Sequence[int], shots: int = 4, seed: int = 2) -> ModelPredictions:
    confidence = np.linspace(0.4, 1, len(said)).astype(np.float32)
    return ModelPredictions(label, "pets", shots, seed, np.array(said, np.uint16), confidence)


def sheet(truth: Sequence[int], *given: ModelPredictions, named: bool = True) -> PredictionTable:
    files = tuple(f"{i}.jpg" for i in range(len(truth))) if named else ()
    places = np.arange(len(truth), dtype=np.int32) * 2
    return PredictionTable(
        "pets", "test", CLASSES, places, files, np.array(truth, np.uint16), given
    )


def same(one: PredictionTable, other: PredictionTable) -> bool:
    facts = ("target", "part", "classes", "files")
    arrays: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (one.images, other.images),
        (one.truth, other.truth),
    ]
    for a, b in zip(one.answers, other.answers, strict=True):
        assert (a.model, a.seed) == (b.model, b.seed)
        arrays += [(a.prediction, b.prediction), (a.confidence, b.confidence)]
    exact = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)
    return exact and all(getattr(one, f) == getattr(other, f) for f in facts)


ROWS = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=20)


@settings(max_examples=20, deadline=None)  # it writes files
@given(ROWS, st.booleans())
def test_what_is_written_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], named: bool
) -> None:
    truth, first, second = (list(column) for column in zip(*rows, strict=True))
    whole = sheet(truth, answers("zero-shot", first), answers("winner", second), named=named)
    other = replace(sheet(first, answers("winner", truth, seed=3)), target="dtd", part="target")
    storage = LocalStorage(tmp_path_factory.mktemp("sweep"))
    write_predictions(storage, FOUND, [whole, other])
    found = read_predictions(storage, FOUND)
    assert found is not None
    assert len(found) == 2
    assert same(found[0], whole)
    assert same(found[1], other)


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    write_predictions(LocalStorage(tmp_path), FOUND, [sheet([0, 1], answers("winner", [1, 1]))])
    with pa.memory_map(str(tmp_path / PREDICTIONS)) as file:
        first, second = pa.ipc.open_file(file).read_all().to_pylist()
    assert second["confidence"] == 1
    del first["confidence"], second["confidence"]
    model = {"label": "winner", "dataset": "pets", "shots": 4, "seed": 2}
    judged = {"target": "pets", "part": "test", "prediction": 1}
    assert first == model | judged | {"image": 0, "file": "0.jpg", "truth": 0}
    assert second == model | judged | {"image": 2, "file": "1.jpg", "truth": 1}


def test_what_is_not_this_evaluation_s_is_not_read(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert read_predictions(storage, FOUND) is None
    assert read_examples(storage, FOUND) == []
    one = sheet([0, 1], answers("zero-shot", [0, 0]), answers("winner", [1, 1]))
    write_predictions(storage, FOUND, [one])
    taken = take_examples(one, pixels(2), 9)
    write_examples(storage, FOUND, taken)
    assert len(taken) == 2
    assert read_examples(storage, FOUND) == taken
    for other in (replace(FOUND, winner=4), replace(FOUND, seeds=(2,))):
        assert read_predictions(storage, other) is None
        assert read_examples(storage, other) == []


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0nonsense", b"PK"])
def test_damaged_files_are_none(content: bytes, tmp_path: Path) -> None:
    for name in (PREDICTIONS, EXAMPLES):
        (tmp_path / name).write_bytes(content)
    assert read_predictions(LocalStorage(tmp_path), FOUND) is None
    assert read_examples(LocalStorage(tmp_path), FOUND) == []


def test_a_file_that_was_cut_is_none(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    write_predictions(storage, FOUND, [sheet([0, 1], answers("winner", [1, 1]))])
    whole = (tmp_path / PREDICTIONS).read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / PREDICTIONS).write_bytes(whole[:size])
        assert read_predictions(storage, FOUND) is None


def test_many_predictions_stay_small(tmp_path: Path) -> None:
    """ImageNet's 50,000 images, three models, three draws."""
    rng = np.random.default_rng(0)
    rows = 50_000
    truth = np.repeat(np.arange(1000), 50).astype(np.uint16)
    labels: tuple[Label, ...] = ("zero-shot", "paper", "winner")
    given = tuple(
        ModelPredictions(
            *(label, "imagenet", 16, seed),
            np.where(rng.random(rows) < 0.7, truth, rng.integers(0, 1000, rows)).astype(np.uint16),
            rng.random(rows, np.float32),
        )
        for label in labels
        for seed in (2, 3, 4)
    )
    names = tuple(f"val/n{t:08d}/ILSVRC2012_val_{i:08d}.JPEG" for i, t in enumerate(truth))
    classes = tuple(f"class {i}" for i in range(1000))
    whole = PredictionTable(
        "imagenet", "test", classes, np.arange(rows, dtype=np.int32), names, truth, given
    )
    write_predictions(LocalStorage(tmp_path), FOUND, [whole])
    assert (tmp_path / PREDICTIONS).stat().st_size < 6e6
    (found,) = read_predictions(LocalStorage(tmp_path), FOUND) or []
    assert same(found, whole)


def test_predictions_are_the_largest_logits() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, -5.0]])
    found = from_logits("winner", Episode("pets", 4, 2), logits)
    assert found.model == ("winner", "pets", 4)
    assert found.prediction.tolist() == logits.argmax(-1).tolist() == [1, 0]
    expected = [logits[0].softmax(-1)[1], logits[1].softmax(-1)[0]]
    assert found.confidence.tolist() == [float(x) for x in expected]
    one = sheet([1, 1], found)
    assert one.accuracy(found) == 0.5


def pixels(count: int, height: int = 8, width: int = 8) -> PixelRows:
    shape = (count, 3, height, width)
    return PixelRows(torch.arange(count * 3 * height * width).reshape(shape).to(torch.uint8))


def test_examples_are_where_the_two_differ() -> None:
    truth = [0, 1, 2, 0, 1, 2]
    before = answers("zero-shot", [0, 0, 2, 1, 1, 0])
    after = answers("winner", [0, 1, 1, 1, 1, 2])  # rows 1 and 5 gained, row 2 lost
    later = answers("winner", [1] * 6, seed=3)
    one = sheet(truth, before, after, answers("zero-shot", truth, seed=3), later)
    found = take_examples(one, pixels(6), 12)
    assert [(e.file, e.gained) for e in found] == [
        ("1.jpg", True),
        ("5.jpg", True),
        ("2.jpg", False),
    ]
    assert [(e.truth, e.before, e.after) for e in found][1] == ("cat", "cat", "cat")
    assert {(e.shots, e.seed) for e in found} == {(4, 2)}
    image = np.asarray(Image.open(io.BytesIO(found[2].png)))
    assert np.array_equal(image, pixels(6).pixels[2].permute(1, 2, 0).numpy())
    assert len(take_examples(one, pixels(6), 1)) == 2


def test_the_winner_with_the_most_shots_is_shown() -> None:
    few = (answers("zero-shot", [0, 0], 1), answers("winner", [1, 1], 1))
    many = (answers("zero-shot", [0, 0], 8), answers("winner", [0, 1], 8))
    (found,) = take_examples(sheet([0, 1], *few, *many), pixels(2), 12)
    assert (found.shots, found.gained) == (8, True)


def test_features_have_no_images() -> None:
    features = FeatureRows(torch.zeros(2, 4), "x")
    one = sheet([0, 1], answers("zero-shot", [0, 0]), answers("winner", [1, 1]), named=False)
    assert take_examples(one, features, 12) == []
    assert take_examples(sheet([0], answers("paper", [0])), pixels(1), 12) == []
    assert file_names(features) == file_names(pixels(2)) == ()
    assert file_names(ImageFiles(Path("/x"), ("a.jpg", "b.jpg"))) == ("a.jpg", "b.jpg")


def test_a_thumbnail_is_small_and_keeps_its_shape() -> None:
    image = Image.open(io.BytesIO(thumbnail(pixels(1, 300, 200).pixels[0])))
    assert image.format == "PNG"
    assert image.size == (SIDE * 2 // 3, SIDE)
