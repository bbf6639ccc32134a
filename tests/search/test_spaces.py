"""`search.spaces`: every space and every field, with ranges, conditions and the presets' values."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.spaces import main
from spaces.registry import SPACES


def test_all_spaces_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(SPACES)
    assert "method, clap.penalty" in lines[0] or "method, taskres" in lines[0]
    assert "threshold, init, leak" in lines[1]


@pytest.mark.parametrize("name", [*SPACES, "vpt+taskres"])
def test_every_space_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    assert "None" not in capsys.readouterr().out


def test_the_fields_of_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rmt", "--shots", "1"]) == 0
    found = capsys.readouterr().out
    searched, others = found.split("others, for --set, --range, --choice and --grid")
    (leak,) = re.findall(r"^leak .*$", searched, re.MULTILINE)
    assert re.split(r" {2,}", leak)[:5] == ["leak", "0 to 1", "1", "1", "1"]
    assert "if rule is gradient-dropout or sign" in leak
    (norm,) = re.findall(r"^norm_weight .*$", searched, re.MULTILINE)
    assert re.split(r" {2,}", norm)[2:5] == ["0", "0.0001", "0"]
    (optimiser,) = re.findall(r"^optimiser .*$", others, re.MULTILINE)
    assert optimiser.strip().endswith("One of adam, adamw, sgd.")


def test_all_shots_are_those_of_the_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The batches of mask tuning depend on the number of images."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(100):
            pixels = np.full((4, 4), number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    rows = set()
    for options in (["--shots", "2"], ["--shots", "all"]):
        assert main(["rmt", "--dataset", f"folder:{tmp_path}", *options]) == 0
        (row,) = re.findall(r"^batch_size .*$", capsys.readouterr().out, re.MULTILINE)
        rows.add(row)
    assert len(rows) == 2
    assert main(["rmt", "--shots", "every"]) == 2
    assert "or all" in capsys.readouterr().err
    assert main(["rmt", "--shots", "all", "--dataset", "dtd", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taskers", "--shots", "0", "--dataset", "digit"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error:")] == said
    assert len(said) == 3
    assert "Did you mean 'taskres'?" in said[2]
