"""Whole sweeps on image files, and images that become unreadable later."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.search.conftest import Sweep
from tests.trainables.data.shared import shared_data
from tests.trainables.data.trees import dtd, snapshot

QUICK = ("--eval-seeds", "1", "--seeds", "1", "--tracking-uri", "none")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A miniature of DTD: four classes, two training images in the smallest."""
    dtd(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.slow
def test_masks_on_image_files(tmp_path: Path, tree: Path) -> None:
    """Decoded once, cropped, evaluated; nothing is written where the images are."""
    before = snapshot(tree)
    sweep = Sweep(tmp_path, "masks")
    options = ("--space", "rmt", "--dataset", "dtd", "--data", str(tree), "--shots", "2")
    done = sweep.run_alone(*options, *QUICK, "--trials", "1")
    assert done.returncode == 0, done.stderr
    assert "8 images decoded: " in done.stdout
    assert sweep.evaluation()["scores"][0]["images"] == 16
    assert snapshot(tree) == before


@pytest.mark.slow
def test_an_unreadable_image_stops_before_the_first_trial_or_is_left_out(
    tmp_path: Path, tree: Path
) -> None:
    sweep = Sweep(tmp_path, "residuals")
    for image in (tree / "dtd/images/banded").glob("*.jpg"):
        shutil.copy(image, image.with_suffix(".whole"))
        image.write_bytes(image.read_bytes()[:200])
    options = ("--space", "taskres", "--dataset", "dtd", "--data", str(tree), "--shots", "2")
    done = sweep.run_alone(*options, *QUICK, "--trials", "1")
    assert done.returncode == 1
    assert "banded_" in done.stderr
    assert "--skip-unreadable" in done.stderr
    assert not sweep.results()
    for image in sorted((tree / "dtd/images/banded").glob("*.jpg"))[1:]:
        image.with_suffix(".whole").rename(image)
    done = sweep.run_alone(
        *options, *QUICK, "--trials", "1", "--skip-unreadable", "--name", "skipping"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_real_photographs(tmp_path: Path) -> None:
    """1,200 images of DTD: 600 to draw from, 240 for validation, 360 for the end."""
    real = shared_data("dtd-10classes", "dtd")
    (tmp_path / "data" / "dtd").mkdir(parents=True)
    (tmp_path / "data" / "dtd" / "images").symlink_to(real / "images")
    split = tmp_path / "data" / "dtd" / "split_zhou_DescribableTextures.json"
    shutil.copy(real / "split_10classes.json", split)
    sweep = Sweep(tmp_path, "photographs")
    where = ("--dataset", "dtd", "--data", str(tmp_path / "data"))
    for name, space in (("residuals", "taskres"), ("masks", "rmt")):
        options = ("--space", space, *where, "--trials", "1", "--name", name)
        done = sweep.run_alone(*options, *QUICK)
        assert done.returncode == 0, done.stderr
        found = Sweep(tmp_path, name).evaluation()["scores"]
        assert {score["images"] for score in found} == {360}
    winner = {
        s["label"]: s["values"][0] for s in Sweep(tmp_path, "residuals").evaluation()["scores"]
    }
    assert winner["winner"] > winner["zero-shot"]
