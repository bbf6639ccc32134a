"""Tensor files are read complete and unchanged, or not used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.core.storage import LocalStorage
from trainables.core.tensor_file import (
    numbered,
    read_checked,
    read_tensors,
    split_numbered,
    under,
    write_checked,
    write_tensors,
)

TENSORS = {
    "half": torch.ones(2, 3, dtype=torch.float16),
    "bits": torch.tensor([1, 255], dtype=torch.uint8),
    "turned": torch.arange(6.0).view(2, 3).T,
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(2.5),
}
WORDS = {"format": "x", "stages": '["é"]'}


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[k], t) and found[k].dtype == t.dtype for k, t in TENSORS.items()
    )


def test_there_and_back(tmp_path: Path) -> None:
    folder = LocalStorage(tmp_path)
    write_tensors(folder, "plain", TENSORS, WORDS)
    write_checked(folder, "checked", TENSORS, WORDS)
    plain, checked = read_tensors(folder, "plain"), read_checked(folder, "checked")
    for found in (plain, checked):
        assert found is not None
        assert equal(found[0])
        assert found[1] == WORDS
    assert read_checked(folder, "plain") is None  # it says nothing of its content


def test_what_is_not_there(tmp_path: Path) -> None:
    assert read_tensors(LocalStorage(tmp_path), "nothing") is None
    assert read_checked(LocalStorage(tmp_path / "nowhere"), "nothing") is None


@pytest.mark.parametrize("bit", ["first", "last"])
def test_one_bit_is_seen(bit: str, tmp_path: Path) -> None:
    folder, path = LocalStorage(tmp_path), tmp_path / "x"
    write_checked(folder, "x", TENSORS, WORDS)
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    content[begin if bit == "first" else -1] ^= 1
    path.write_bytes(content)
    assert read_tensors(folder, "x") is not None
    assert read_checked(folder, "x") is None


@pytest.mark.parametrize("change", [{"format": "y"}, {"more": "words"}])
def test_another_word_is_seen(change: dict[str, str], tmp_path: Path) -> None:
    folder, path = LocalStorage(tmp_path), tmp_path / "x"
    write_checked(folder, "x", TENSORS, WORDS)
    _, metadata = read_tensors(folder, "x") or ({}, {})
    save_file(load_file(path), path, metadata | change)
    assert read_checked(folder, "x") is None


@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_file_that_was_cut_off(size: int, tmp_path: Path) -> None:
    folder, path = LocalStorage(tmp_path), tmp_path / "x"
    write_checked(folder, "x", TENSORS, WORDS)
    path.write_bytes(path.read_bytes()[:size])
    assert read_tensors(folder, "x") is None
    assert read_checked(folder, "x") is None


def test_joined_objects_are_split_again() -> None:
    """More than nine, so that a number is not mistaken for the beginning of another."""
    parts = [({"a": torch.tensor(float(i)), "b/c": torch.ones(2)}, f"part {i}") for i in range(11)]
    tensors, records = numbered([*parts, ({}, "empty")])
    assert tensors["1/a"] == 1
    assert tensors["10/a"] == 10
    found = split_numbered(tensors, records)
    assert [record for _, record in found] == [*(record for _, record in parts), "empty"]
    assert [list(own) for own, _ in found] == [["a", "b/c"]] * 11 + [[]]
    assert [own["a"].item() for own, _ in found[:-1]] == list(range(11))


def test_only_the_names_under_a_prefix_are_taken() -> None:
    tensors = {"now/weight": torch.zeros(1), "nowhere": torch.zeros(1), "0/now/x": torch.zeros(1)}
    assert list(under(tensors, "now/")) == ["weight"]
