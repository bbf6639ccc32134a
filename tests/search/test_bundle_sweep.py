"""Sweeps on precomputed features."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.run import main
from tests.search.conftest import Sweep
from tests.trainables.data.bundles import tensors, write_bundle
from tests.trainables.data.shared import shared_data


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    path = tmp_path / "small.safetensors"
    write_bundle(path, tensors())
    return f"bundle:{path}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--space", "rmt"), ["--space rmt trains on images", "--space taskres"]),
        (("--backbone", "tiny"), ["--backbone must be omitted with a bundle", "got 'tiny'"]),
        (("--protocol", "base-to-new"), ["A bundle must be the only data set"]),
        (("--shots", "50"), ["shots is 50", "Use --shots 4"]),
    ],
)
def test_what_a_bundle_cannot_do(
    bundle: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    expected: list[str],
) -> None:
    given = ["--space", "taskres", "--dataset", bundle, "--storage", str(tmp_path / "sweeps")]
    assert main([*given, "--tracking-uri", "none", *options]) == 2
    line = capsys.readouterr().err.splitlines()[0]
    for part in expected:
        assert part in line


def test_a_bundle_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.safetensors").write_text("not a bundle")
    assert main(["--space", "taskres", "--dataset", f"bundle:{tmp_path}/text.safetensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "text.safetensors" in line


@pytest.mark.slow
def test_real_features(tmp_path: Path) -> None:
    """OpenAI's ViT-B/32 on 25 breeds of Oxford Pets, 4 shots."""
    path = shared_data("clip-vitb32", "oxford_pets25_4shot.safetensors")
    sweep = Sweep(tmp_path, "pets")
    done = sweep.run_alone(
        "--space", "taskres", "--dataset", f"bundle:{path}", "--tracking-uri", "none"
    )
    assert done.returncode == 0, done.stderr
    means = {s["label"]: s["values"][0] for s in sweep.evaluation()["scores"]}
    assert sweep.evaluation()["seeds"] == [4]  # 5 and 6 would draw the same four of each class
    assert "one draw of training images (seed 4)" in done.stdout
    assert "The 3 requested seeds give 1 distinct set of training images." in done.stdout
    assert "These are the training images of the search, not fresh ones." in done.stdout
    assert "fresh draw" not in done.stdout
    assert "over test images" in done.stdout
    assert round(100 * means["zero-shot"], 2) == 92.07
    assert means["winner"] >= means["zero-shot"]
