"""The doctor's findings on trees in the original layout with one mistake at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.doctor import check_data, check_dataset, check_storage, main
from tests.trainables.data.bundles import tensors, write_bundle
from tests.trainables.data.shared import shared_data
from tests.trainables.data.trees import TREES, dtd, snapshot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    dtd(tmp_path)
    return tmp_path


def test_a_tree_is_read_and_its_counts_compared(root: Path) -> None:
    before = snapshot(root)
    found = check_dataset("dtd", str(root), asked=True)
    assert found.state == "look"  # it is a miniature
    assert "Published: 47 classes, 2,820 train" in found.remedy
    assert snapshot(root) == before


def test_missing_images_are_counted_and_named(root: Path) -> None:
    victims = sorted((root / "dtd" / "images").glob("*/*.jpg"))[:2]
    for victim in victims:
        victim.unlink()
    found = check_dataset("dtd", str(root), asked=True)
    assert found.state == "wrong"
    assert "2 of its images are missing" in found.found
    assert victims[0].name in found.remedy


def test_a_damaged_image_is_named(root: Path) -> None:
    for image in (root / "dtd" / "images").glob("*/*.jpg"):
        image.write_bytes(image.read_bytes()[:100])
    found = check_dataset("dtd", str(root), asked=True)
    assert found.state == "wrong"
    assert ".jpg" in found.remedy


@pytest.mark.parametrize("name", ["dtd", "imagenet", "imagenet_v2", "imagenet_a"])
def test_a_damaged_test_image_is_named(root: Path, name: str) -> None:
    tree = TREES[name](root)
    assert check_dataset(name, str(root), asked=True).state == "look"
    for path, _ in tree.rows["test"]:
        next(tree.folder.rglob(path)).write_bytes(b"no image")
    found = check_dataset(name, str(root), asked=True)
    assert found.state == "wrong"
    assert "Every image must be readable" in found.remedy


def test_test_rows_of_a_bundle_that_are_unfit(tmp_path: Path) -> None:
    spec = f"bundle:{write_bundle(tmp_path / 'b.safetensors', tensors())}"
    assert check_dataset(spec, "", asked=True).state == "fine"
    found = tensors()
    found["test_features"][3, 2] = float("nan")
    write_bundle(tmp_path / "b.safetensors", found)
    finding = check_dataset(spec, "", asked=True)
    assert finding.state == "wrong"
    assert "NaN or infinity in row 3 of test_features" in finding.remedy


def test_a_missing_split_file_says_how_to_do_without(root: Path) -> None:
    (root / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    found = check_dataset("dtd", str(root), asked=True)
    assert found.state == "wrong"
    assert "--generate-split" in found.remedy


def test_what_is_not_there_is_wrong_only_where_it_was_asked_for(root: Path) -> None:
    assert check_dataset("eurosat", str(root), asked=True).state == "wrong"
    assert check_dataset("eurosat", str(root), asked=False).state == "absent"
    by_name = {finding.what: finding.state for finding in check_data(str(root), [])}
    assert by_name["dtd"] == "look"
    assert by_name["digits"] == "fine"
    (others,) = (f for f in check_data(str(root), []) if f.what == "others")
    assert others.state == "absent"
    assert others.found.startswith("imagenet, caltech101")


def test_the_real_images_are_fine_but_for_their_number() -> None:
    folder = shared_data("dtd-10classes", "dtd", "images")
    found = check_dataset(f"folder:{folder}", "", asked=True)
    assert found.state == "fine", found.remedy
    assert found.found.startswith("10 classes")
    assert "50" in found.remedy  # how it was split


def test_storage_that_cannot_be(tmp_path: Path) -> None:
    assert check_storage(str(tmp_path)).state == "fine"
    assert check_storage("s4://bucket").state == "wrong"


def test_the_table(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ["--data", str(root), "--tracking-uri", "none"]
    assert main([*options, "--dataset", "dtd"]) == 0
    said = capsys.readouterr().out
    for what in ("dtd", "backbone", "storage", "tracking", "cluster", "GPU", "cache"):
        assert f"\n{what} " in said
    assert main([*options, "--dataset", "dtd,eurosat"]) == 1
    assert main(["--nonsense"]) == 2
    assert "See --help" in capsys.readouterr().err


def test_a_root_that_is_none(tmp_path: Path) -> None:
    (found,) = check_data(str(tmp_path / "nothing"), [])
    assert found.state == "wrong"
    assert "nothing" in found.remedy
