"""Tensors of several objects in one dictionary."""

from __future__ import annotations

import torch

from trainables.core.tensor_names import numbered, split_numbered, under


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
