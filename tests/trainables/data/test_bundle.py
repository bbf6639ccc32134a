"""Feature bundles: the real ones as they are, and every wrong one in one clear line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainables.data.bundles import METADATA, NAMES, tensors, write_bundle
from tests.trainables.data.shared import shared_data
from trainables.data.base import DataError, FeatureRows, SealedError, Split, distinct
from trainables.data.bundle import Bundle, open_bundle
from trainables.data.few_shot import draw_few_shot
from trainables.data.sealed import TRAINING_PROCESS, TestPermit, check_test_split, read_test_split

Tensors = dict[str, Tensor]


def features(split: Split) -> Tensor:
    assert isinstance(split.images, FeatureRows)
    return split.images.features


def sealed_of(bundle: Bundle) -> Split:
    return read_test_split(bundle, lambda: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "small.safetensors"


def test_a_bundle_is_what_its_file_says(path: Path) -> None:
    found = tensors()
    bundle = open_bundle(write_bundle(path, found, METADATA | {"template": "art of a {}."}))
    assert bundle.name == f"bundle:{path}"
    assert bundle.class_names == tuple(NAMES)
    assert (bundle.backbone_name, bundle.logit_scale, bundle.shots) == ("ViT-X", 50.0, 4)
    assert not bundle.flip
    assert bundle.class_features.equal(found["class_features"])
    assert bundle.prompts("paper").texts() == [
        ["art of a red fox."],
        ["art of a owl."],
        ["art of a newt."],
    ]
    for split in ("train", "val"):
        assert features(bundle.split(split)).equal(found[f"{split}_features"].float())
        assert bundle.split(split).labels.equal(found[f"{split}_labels"])
    assert features(sealed_of(bundle)).equal(found["test_features"].float())
    assert any("none is cropped" in notice for notice in bundle.caveats)
    assert any("has 4 training rows" in notice for notice in bundle.caveats)


def test_its_images_are_not_there(path: Path) -> None:
    rows = open_bundle(write_bundle(path, tensors())).split("train").images
    with pytest.raises(DataError, match="holds features and no images"):
        rows.read(0)


def test_test_rows_are_sealed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(write_bundle(path, tensors()))
    with pytest.raises(SealedError, match="does not open"):
        bundle.sealed_split(TestPermit("digits"))
    with pytest.raises(SealedError, match="'train' and 'val' are open"):
        bundle.split("test")  # type: ignore[arg-type]
    monkeypatch.setenv(*next(iter(TRAINING_PROCESS.items())))
    with pytest.raises(SealedError, match="cannot be read in a process that trains"):
        bundle.sealed_split(TestPermit(bundle.name))


def test_opening_reads_no_test_value(path: Path) -> None:
    """As trials do it. Before a search its test rows are looked at, by `check_test_split` alone:
    it reads every value, and gives out none but a label that is no class of the bundle."""
    check_test_split(open_bundle(write_bundle(path, tensors())))
    found = tensors()
    found["test_features"][3, 2] = float("nan")
    bundle = open_bundle(write_bundle(path, found))
    for read in (sealed_of, check_test_split):
        with pytest.raises(DataError, match="NaN or infinity in row 3 of test_features"):
            read(bundle)
    found = tensors()
    found["test_labels"][5] = 3
    bundle = open_bundle(write_bundle(path, found))
    with pytest.raises(DataError, match=r"must be in 0..2, got 3 in row 5 of test_labels"):
        check_test_split(bundle)


def test_fingerprints_are_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = open_bundle(write_bundle(tmp_path / "a.safetensors", tensors()))
    moved = open_bundle(write_bundle(tmp_path / "elsewhere/b.safetensors", tensors()))
    changed = tensors()
    changed["train_features"][0, 0] += 1
    changed["val_labels"][0] = 1
    other = open_bundle(write_bundle(tmp_path / "c.safetensors", changed))
    for split in ("train", "val"):
        assert first.split(split).fingerprint == moved.split(split).fingerprint
        assert first.split(split).fingerprint != other.split(split).fingerprint


def test_few_shot_sets_are_drawn_from_its_rows(path: Path) -> None:
    bundle = open_bundle(write_bundle(path, tensors()))
    drawn = draw_few_shot(bundle, 2, seed=1)
    assert drawn.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    pool = {tuple(row) for row in features(bundle.split("train")).tolist()}
    assert {tuple(row) for row in features(drawn.train).tolist()} < pool
    with pytest.raises(DataError, match="has 4 in train, shots is 5"):
        draw_few_shot(bundle, 5, seed=1)


def test_a_relative_path_is_made_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(path, tensors())
    monkeypatch.chdir(path.parent)
    assert open_bundle(Path(path.name)).name == f"bundle:{path.resolve()}"


def _without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {k: v for k, v in found.items() if k not in names}


def _with(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda found: found | {name: change(found[name])}


def _at(row: int, value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[row] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("val_features", "val_labels"), "missing: val_features, val_labels"),
        (_without("class_features"), "missing: class_features"),
        (_without("test_labels"), "missing: test_labels"),
        (_with("train_labels", Tensor.int), r"Labels are int64 .* got I32 \[12\] as train_labels"),
        (_with("test_labels", lambda x: x[:, None]), r"got I64 \[6, 1\] as test_labels"),
        (_with("val_features", Tensor.double), r"got F64 \[15, 6\] as val_features"),
        (_with("test_features", Tensor.flatten), r"got F16 \[36\] as test_features"),
        (_with("class_features", Tensor.int), "got I32 .* as class_features"),
        (_with("train_features", lambda x: x[:0]), r"not empty, got F16 \[0, 6\]"),
        (_with("train_labels", lambda x: x[1:]), "got 12 rows of train_features and 11 of train_"),
        (_with("test_labels", lambda x: x[1:]), "got 6 rows of test_features and 5 of test_labels"),
        (
            _with("class_features", lambda x: x[:, :5]),
            "got 6 in train_features and 5 in class_features.* of another backbone",
        ),
        (_with("test_features", lambda x: x[:, :4]), "got 4 in test_features .* another backbone"),
        (
            _with("train_labels", _at(7, 3)),
            r"3 classes must be in 0..2, got 3 in row 7 of train_labels",
        ),
        (_with("val_labels", _at(0, -1)), r"got -1 in row 0 of val_labels"),
        (_with("train_features", _at(5, float("nan"))), "NaN or infinity in row 5 of train_feat"),
        (_with("val_features", _at(2, float("inf"))), "NaN or infinity in row 2 of val_features"),
        (_with("class_features", _at(1, float("nan"))), "NaN or infinity in row 1 of class_feat"),
        (
            _with("train_labels", lambda x: x.clamp(max=1)),
            r"needs a training row, class 2 \('newt'\) has none",
        ),
        (_with("val_labels", lambda x: x.clamp(min=1)), r"validation row, class 0 \('red_fox'\)"),
        (_with("class_features", lambda x: x[:2]), "got 3 names and 2 class_features"),
    ],
)
def test_wrong_tensors(path: Path, change: Callable[[Tensors], Tensors], message: str) -> None:
    write_bundle(path, change(tensors()))
    with pytest.raises(DataError, match=message) as caught:
        open_bundle(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "missing: class_names"),
        ({"class_names": None}, "missing: class_names"),
        ({"class_names": "red_fox, owl"}, "are a JSON list of names, got 'red_fox, owl'"),
        ({"class_names": '{"0": "owl"}'}, "are a JSON list of names"),
        ({"class_names": '["owl", 1, "newt"]'}, "are a JSON list of names"),
        ({"class_names": '["owl", " ", "newt"]'}, "are a JSON list of names"),
        ({"class_names": "[" * 100_000}, "are a JSON list of names"),
        ({"class_names": '["owl", "\\u001b[31mnewt", "elk"]'}, "contains U\\+001B"),
        ({"class_names": '["owl", "\\ud800", "elk"]'}, "contains U\\+D800"),
        ({"class_names": '["owl", "ne\\u0000wt", "elk"]'}, "contains U\\+0000"),
        ({"logit_scale": "1e30"}, "from 1 to 1000, got '1e30'"),
        ({"logit_scale": "0.01"}, "from 1 to 1000, got '0.01'"),
        ({"class_names": '["owl", "newt"]'}, "got 2 names and 3 class_features"),
        ({"backbone": None}, "missing: backbone"),
        ({"logit_scale": None}, "missing: logit_scale"),
        ({"logit_scale": "hot"}, "from 1 to 1000, got 'hot'"),
        ({"logit_scale": "0"}, "from 1 to 1000, got '0'"),
        ({"logit_scale": "-3"}, "from 1 to 1000, got '-3'"),
        ({"logit_scale": "inf"}, "from 1 to 1000, got 'inf'"),
        ({"logit_scale": "nan"}, "from 1 to 1000, got 'nan'"),
        ({"template": "a photo."}, "has one {} for the name, got 'a photo.'"),
        ({"template": "a {} of {}."}, "has one {} for the name"),
        ({"template": "a {} of {name}."}, "has one {} for the name"),
    ],
)
def test_wrong_metadata(path: Path, metadata: dict[str, str | None] | None, message: str) -> None:
    whole = None
    if metadata is not None:
        whole = {k: v for k, v in (METADATA | metadata).items() if v is not None}
    write_bundle(path, tensors(), whole)
    with pytest.raises(DataError, match=message) as caught:
        open_bundle(path)
    assert "\n" not in str(caught.value)


def test_two_classes_of_one_name(path: Path) -> None:
    names = {"class_names": '["crane", "owl", "crane"]'}
    bundle = open_bundle(write_bundle(path, tensors(), METADATA | names))
    assert bundle.class_names == ("crane", "owl", "crane")
    assert distinct(bundle.class_names) == ("crane (0)", "owl", "crane (2)")
    assert distinct(("a", "a (0)", "a")) == ("a (0) (0)", "a (0)", "a (2)")


def test_one_class_is_no_task(path: Path) -> None:
    write_bundle(path, tensors(classes=1), METADATA | {"class_names": '["owl"]'})
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        open_bundle(path)


@pytest.mark.parametrize("name", ["train_features", "val_features", "class_features"])
@pytest.mark.parametrize("factor", [0.0, 1e-6, 1e5])
def test_features_have_a_plausible_length(path: Path, name: str, factor: float) -> None:
    found = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in tensors().items()
    }
    found[name][2] *= factor
    write_bundle(path, found)
    with pytest.raises(DataError, match=rf"length from 0.001 to 10000, got .* in row 2 of {name}"):
        open_bundle(path)


def test_test_features_have_a_plausible_length(path: Path) -> None:
    found = tensors()
    found["test_features"][4] = 0
    bundle = open_bundle(write_bundle(path, found))
    with pytest.raises(DataError, match="got 0 in row 4 of test_features"):
        check_test_split(bundle)


@pytest.mark.parametrize(("scale", "said"), [("4.6052", "logarithm of 100.0"), ("100", "")])
def test_a_logarithm_in_place_of_the_scale_is_noticed(path: Path, scale: str, said: str) -> None:
    bundle = open_bundle(write_bundle(path, tensors(), METADATA | {"logit_scale": scale}))
    assert any("logarithm" in caveat for caveat in bundle.caveats) == bool(said)
    assert any(said in caveat for caveat in bundle.caveats)


@pytest.mark.timeout(10)
def test_something_else_in_a_bundles_place(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a named pipe"):
        open_bundle(path)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match="leads to itself"):
        open_bundle(path)


def test_files_that_are_no_bundle(path: Path) -> None:
    with pytest.raises(DataError, match="must be a file"):
        open_bundle(path)
    with pytest.raises(DataError, match="must be a file"):
        open_bundle(path.parent)
    for content in (b"", b"hello", os.urandom(4096)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is a whole safetensors file, .* is not"):
            open_bundle(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off(path: Path, share: float) -> None:
    whole = write_bundle(path, tensors()).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"is a whole safetensors file, .* is not"):
        open_bundle(path)


def test_a_file_that_changes_before_its_test_rows_are_read(path: Path) -> None:
    bundle = open_bundle(write_bundle(path, tensors()))
    path.unlink()
    with pytest.raises(DataError, match="must be a file"):
        sealed_of(bundle)
    write_bundle(path, _without("test_labels")(tensors()))
    with pytest.raises(DataError, match="missing: test_labels"):
        sealed_of(bundle)


@pytest.mark.parametrize("shots", [1, 4, 16])
def test_the_real_ones(shots: int) -> None:
    bundle = open_bundle(shared_data("clip-vitb32", f"oxford_pets25_{shots}shot.safetensors"))
    assert (bundle.shots, bundle.logit_scale) == (shots, 100.0)
    assert bundle.backbone_name == "ViT-B-32-quickgelu/openai"
    assert len(bundle.class_names) == 25
    assert json.dumps(bundle.prompts("paper").texts()[1]) == '["a photo of a basset hound."]'
    assert [len(bundle.split(s).labels) for s in ("train", "val")] == [25 * shots, 497]
    test = sealed_of(bundle)
    assert len(test.labels) == 2483
    vectors = functional.normalize(bundle.class_features, dim=-1)
    logits = bundle.logit_scale * functional.normalize(features(test), dim=-1) @ vectors.T
    right = int((logits.argmax(-1) == test.labels).sum())
    assert f"{100 * right / 2483:.2f}" == "92.07"
    drawn = draw_few_shot(bundle, shots, 1)
    assert torch.equal(drawn.train.labels, torch.arange(25).repeat_interleave(shots))
