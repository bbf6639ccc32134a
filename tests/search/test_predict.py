"""Classifying image files with sweeps and exports; see `test_export.py` for their networks."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from search import export
from search.core.problems import UsageError
from search.core.sweep_folder import SweepFolder
from search.exporting.model import Model, find_artifact, open_model
from search.exporting.open_classifier import open_classifier
from search.predict import main
from tests.search.made import made
from tests.trainables.data.bundles import tensors, write_bundle
from tests.trainables.trials import mask_trial, residual_trial
from trainables.core.storage import LocalStorage
from trainables.images.decode import ImageError
from trainables.trial import TaskSpec

pytestmark = [
    pytest.mark.timeout(600),
    # MLflow's own, about the export.
    pytest.mark.filterwarnings("ignore:.*Add type hints to the `predict` method:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweeps of one trial each: `residual` and `masks`."""
    folder = tmp_path_factory.mktemp("sweeps")
    task = TaskSpec(("digits",), "tiny", (4,), (1,))
    made(folder, "residual", residual_trial(4), task)
    made(folder, "masks", mask_trial(2, crop_scale=1.0), task)
    return folder


def model(storage: Path, name: str) -> Model:
    return open_model(find_artifact(SweepFolder(LocalStorage(storage / name)), "0", ""), "")


@pytest.fixture(scope="module")
def photos(storage: Path) -> Path:
    """The validation images as PNG files, in two folders."""
    images = model(storage, "residual").val_images
    folder = storage.parent / "photos"
    for row in range(len(images)):
        path = folder / ("a" if row < 20 else "b") / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.read(row).permute(1, 2, 0).numpy()).save(path)
    return folder


def expected(storage: Path, name: str) -> Tensor:
    return model(storage, name).logits.softmax(-1)


@pytest.mark.parametrize("name", ["residual", "masks"])
def test_a_sweep_s_model_classifies_files_like_the_sweep(
    name: str, storage: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.csv"
    given = [name, str(photos), "--trial", "0", "--top", "3", "--output", str(out)]
    assert main([*given, "--storage", str(storage)]) == 0
    assert "40 images classified into 10 classes" in capsys.readouterr().out
    rows = list(csv.DictReader(out.read_text().splitlines()))
    best = expected(storage, name).topk(3)
    classes = open_classifier(name, str(storage), "0").classes
    assert [Path(row["file"]).name for row in rows] == [f"{row:02}.png" for row in range(40)]
    assert [row["class_1"] for row in rows] == [classes[i] for i in best.indices[:, 0].tolist()]
    for place in range(3):
        found = [float(row[f"probability_{place + 1}"]) for row in rows]
        assert found == pytest.approx(best.values[:, place].tolist(), abs=1e-4)


def test_an_artifact_classifies_with_the_texts_of_its_trial(photos: Path, tmp_path: Path) -> None:
    """Prompts and class names of the user, which the learned residual belongs to."""
    texts = {"prompt": ("{}, by hand.",), "class_names": tuple("abcdefghij")}
    made(tmp_path, "texts", residual_trial(4), TaskSpec(("digits",), "tiny", (4,), (1,), **texts))  # type: ignore[arg-type]
    folder = tmp_path / "export"
    given = ["texts", "--trial", "0", "--format", "artifact", "--output", str(folder)]
    assert export.main([*given, "--storage", str(tmp_path)]) == 0
    files = sorted(photos.rglob("*.png"))
    labels, probabilities = open_classifier(str(folder), "sweeps").predict(files)
    wanted = expected(tmp_path, "texts")
    np.testing.assert_allclose(probabilities, wanted.numpy(), atol=1e-4)
    assert labels == ["abcdefghij"[place] for place in wanted.argmax(1).tolist()]

    card = json.loads((folder / "card.json").read_text())
    del card["task"]  # as an earlier release wrote it, without the texts' templates
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UsageError, match=r"needs the texts of its classes \(.*a, by hand"):
        open_classifier(str(folder), "sweeps")


@pytest.mark.parametrize("content", ["[]", "{", "[" * 9000, '{"kind": 1}'])
def test_a_description_of_foreign_content(content: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(UsageError, match=r"card\.json' must be readable, and is not"):
        open_classifier(str(tmp_path), "sweeps")


def test_images_in_memory_are_classified_like_files(storage: Path, photos: Path) -> None:
    classifier = open_classifier("residual", str(storage), "0", device="cpu")
    files = sorted(photos.rglob("*.png"))[:3]
    _, reference = classifier.predict(files)
    opened = [Image.open(file) for file in files]
    for images in (opened, [np.asarray(image) for image in opened], map(str, files)):
        assert np.array_equal(classifier.predict(images)[1], reference)
    for one in (files[0], str(files[0]), opened[0]):  # a batch of one is rounded in another way
        np.testing.assert_allclose(classifier.predict(one)[1], reference[:1], atol=1e-5)
    assert classifier.predict([])[1].shape == (0, 10)
    with pytest.raises(ImageError, match=r"image 1 \(.*none.jpg\) cannot be read: it is missing"):
        classifier.predict([files[0], "none.jpg"])
    with pytest.raises(ImageError, match="pixels must be uint8"):
        classifier.predict([np.zeros((4, 4))])


def test_unreadable_images_are_reported_and_skipped(
    storage: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    good = photos / "a" / "00.png"
    given = ["residual", "--trial", "0", "--storage", str(storage)]
    assert main([*given, str(tmp_path / "broken.jpg"), str(good)]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert line.startswith(str(good))
    assert line.endswith("%")
    assert "broken.jpg' was skipped: Pillow recognises none of" in said.err
    assert main([*given, str(tmp_path / "broken.jpg")]) == 1


def test_an_image_that_is_named_twice_is_classified_once(
    storage: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = [str(photos / "a" / "01.png"), str(photos), str(photos / "a" / ".." / "a" / "01.png")]
    assert main(["residual", *twice, "--trial", "0", "--storage", str(storage)]) == 0
    shown = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown[:2] == [twice[0], str(photos / "a" / "00.png")]
    assert len(shown) == 40


def test_a_file_s_name_is_no_formula_in_the_table(
    storage: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(photos / "a" / "00.png", "=cmd().png")
    given = ["residual", "=cmd().png", "--trial", "0", "--storage", str(storage)]
    assert main([*given, "--output", "out.csv"]) == 0
    assert Path("out.csv").read_text().splitlines()[1].startswith("'=cmd().png,")


def test_mistakes_are_reported_at_once_before_the_model_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    images = [str(tmp_path / "none.jpg"), str(tmp_path / "empty")]
    output = str(tmp_path / "no" / "out.csv")
    assert main(["nothing", *images, "--top", "0", "--output", output]) == 2
    said = capsys.readouterr().err
    for words in (
        "--top must be at least 1, got 0",
        "--output must be in a folder that exists",
        "An image must exist, and '",
        "A folder must contain images, and '",
    ):
        assert words in said


def test_models_that_cannot_be_opened(
    storage: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(photos / "a" / "00.png")
    assert main(["nothing", image, "--storage", str(storage)]) == 2
    assert "There is no sweep 'nothing'" in capsys.readouterr().err
    assert main(["residual", image, "--storage", str(storage)]) == 2
    assert "has not been evaluated" in capsys.readouterr().err
    assert main(["residual", image, "--storage", str(storage), "--device", "tpu"]) == 2
    assert "--device must be auto, cpu or cuda, got 'tpu'" in capsys.readouterr().err
    write_bundle(tmp_path / "b.safetensors", tensors())
    spec = f"bundle:{tmp_path / 'b.safetensors'}"
    made(tmp_path, "features", residual_trial(1), TaskSpec((spec,), spec, (1,), (1,)))
    assert main(["features", image, "--storage", str(tmp_path), "--trial", "0"]) == 2
    assert "holds features only" in capsys.readouterr().err
