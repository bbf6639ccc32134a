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
    Example,
    encode_examples,
    read_examples,
    take_examples,
    thumbnail,
)
from search.evaluation.predictions import (
    PREDICTIONS,
    DamagedFileError,
    ModelPredictions,
    PredictionTable,
    as_text,
    checksum,
    encode_predictions,
    file_names,
    from_logits,
    read_predictions,
)
from search.evaluation.record import Evaluation, Label
from trainables.core.storage import LocalStorage
from trainables.data.base import FeatureRows, Images, PixelRows
from trainables.data.image_files import ImageFiles
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


def written(
    storage: LocalStorage, tables: Sequence[PredictionTable], examples: Sequence[Example] = ()
) -> Evaluation:
    """The files in a sweep's folder, and the evaluation that they belong to."""
    files = {PREDICTIONS: encode_predictions(tables), EXAMPLES: encode_examples(examples)}
    for name, data in files.items():
        storage.write(name, data)
    return replace(FOUND, checksums={name: checksum(data) for name, data in files.items()})


def taken(one: PredictionTable, images: Images, most: int) -> list[Example]:
    """Examples of the first two models."""
    return take_examples(one, images, most, one.answers[0], one.answers[1])


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
    found = read_predictions(storage, written(storage, [whole, other]))
    assert len(found) == 2
    assert same(found[0], whole)
    assert same(found[1], other)


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    written(LocalStorage(tmp_path), [sheet([0, 1], answers("winner", [1, 1]))])
    with pa.memory_map(str(tmp_path / PREDICTIONS)) as file:
        first, second = pa.ipc.open_file(file).read_all().to_pylist()
    assert second["confidence"] == 1
    del first["confidence"], second["confidence"]
    model = {"label": "winner", "dataset": "pets", "shots": 4, "seed": 2}
    judged = {"target": "pets", "part": "test", "prediction": 1}
    assert first == model | judged | {"image": 0, "file": "0.jpg", "truth": 0}
    assert second == model | judged | {"image": 2, "file": "1.jpg", "truth": 1}


def test_files_of_another_evaluation_are_not_read(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for read in (read_predictions, read_examples):
        with pytest.raises(DamagedFileError, match="is missing"):
            read(storage, FOUND)
    one = sheet([0, 1], answers("zero-shot", [0, 0]), answers("winner", [1, 1]))
    examples = taken(one, pixels(2), 9)
    found = written(storage, [one], examples)
    assert len(examples) == 2
    assert read_examples(storage, found) == examples
    written(storage, [sheet([0, 1], answers("winner", [1, 0]))], examples[:1])
    for name, read in ((PREDICTIONS, read_predictions), (EXAMPLES, read_examples)):
        with pytest.raises(DamagedFileError, match=f"^'{name}' is damaged or belongs to another"):
            read(storage, found)


@pytest.mark.parametrize("name", [PREDICTIONS, EXAMPLES])
def test_a_single_flipped_bit_is_found(name: str, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    one = sheet([0, 1], answers("zero-shot", [0, 0]), answers("winner", [1, 1]))
    found = written(storage, [one], taken(one, pixels(2), 9))
    whole = (tmp_path / name).read_bytes()
    read = read_predictions if name == PREDICTIONS else read_examples
    for place in range(0, len(whole), 37):
        flipped = bytes([whole[place] ^ (1 << place % 8)])
        (tmp_path / name).write_bytes(whole[:place] + flipped + whole[place + 1 :])
        with pytest.raises(DamagedFileError, match="SHA-256"):
            read(storage, found)
    for size in range(0, len(whole), 97):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(DamagedFileError, match="SHA-256"):
            read(storage, found)


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0nonsense", b"PK", b"ARROW1" * 99])
def test_a_file_of_another_kind_is_an_error(content: bytes, tmp_path: Path) -> None:
    names = (PREDICTIONS, EXAMPLES)
    for name in names:
        (tmp_path / name).write_bytes(content)
    found = replace(FOUND, checksums=dict.fromkeys(names, checksum(content)))
    for read in (read_predictions, read_examples):
        with pytest.raises(DamagedFileError, match="cannot be read"):
            read(LocalStorage(tmp_path), found)


def test_file_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    images = ImageFiles(Path("/x"), ("caf\udce9.jpg", "b.jpg"))
    assert file_names(images) == ("caf\\udce9.jpg", "b.jpg")
    assert as_text("naïve") == "naïve"
    one = replace(sheet([0, 1], answers("winner", [1, 1])), files=file_names(images))
    storage = LocalStorage(tmp_path)
    (found,) = read_predictions(storage, written(storage, [one]))
    assert found.files == file_names(images)


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
    evaluation = written(LocalStorage(tmp_path), [whole])
    assert (tmp_path / PREDICTIONS).stat().st_size < 6e6
    (found,) = read_predictions(LocalStorage(tmp_path), evaluation)
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
    one = sheet(truth, before, after)
    found = taken(one, pixels(6), 12)
    assert [(e.file, e.gained) for e in found] == [
        ("1.jpg", True),
        ("5.jpg", True),
        ("2.jpg", False),
    ]
    assert [(e.truth, e.before, e.after) for e in found][1] == ("cat", "cat", "cat")
    assert {(e.shots, e.seed) for e in found} == {(4, 2)}
    image = np.asarray(Image.open(io.BytesIO(found[2].png)))
    assert np.array_equal(image, pixels(6).pixels[2].permute(1, 2, 0).numpy())
    assert len(taken(one, pixels(6), 1)) == 2


def test_features_have_no_images() -> None:
    features = FeatureRows(torch.zeros(2, 4), "x")
    one = sheet([0, 1], answers("zero-shot", [0, 0]), answers("winner", [1, 1]), named=False)
    assert taken(one, features, 12) == []
    assert file_names(features) == file_names(pixels(2)) == ()
    assert file_names(ImageFiles(Path("/x"), ("a.jpg", "b.jpg"))) == ("a.jpg", "b.jpg")


def test_a_thumbnail_is_small_and_keeps_its_shape() -> None:
    image = Image.open(io.BytesIO(thumbnail(pixels(1, 300, 200).pixels[0])))
    assert image.format == "PNG"
    assert image.size == (SIDE * 2 // 3, SIDE)
