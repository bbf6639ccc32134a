"""The folder of examples is a data set, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.example import LABELLED, main
from trainables.data.lists import ListedDataset
from trainables.data.registry import open_dataset


def test_it_is_a_data_set_and_photos_to_classify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "example"
    assert main([str(folder)]) == 0
    assert f"--dataset folder:{folder}/labelled" in capsys.readouterr().out
    dataset = open_dataset(f"folder:{folder}/labelled")
    assert isinstance(dataset, ListedDataset)
    counts = dataset.counts()
    assert (counts.classes, counts.train + counts.val + counts.test) == (10, 10 * LABELLED)
    assert tuple(dataset.split("train").images.read(0).shape) == (3, 64, 64)
    assert {path.stem for path in (folder / "new").iterdir()} == set(dataset.class_names)


def test_a_folder_with_content_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert "FOLDER must be new or empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
