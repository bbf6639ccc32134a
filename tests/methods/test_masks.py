"""Purity against its two forms; packed masks against damage."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from trainables.methods.base import MethodError
from trainables.methods.masks import (
    keep,
    pack_bits,
    pack_masks,
    purity,
    unpack_bits,
    unpack_masks,
)

numbers = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30)
shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)
masks = st.dictionaries(
    st.text("abc.0", min_size=1, max_size=5),
    shapes.flatmap(lambda shape: arrays.arrays(bool, shape)).map(torch.from_numpy),
    min_size=1,
    max_size=4,
)


@given(pairs)
def test_purity_equals_its_closed_form(rows: list[tuple[float, float]]) -> None:
    a, b = torch.tensor(rows, dtype=torch.float64).T
    closed = torch.where(a * b >= 0, 1.0, a.abs() / (a.abs() + b.abs()))
    decided = (a != 0) | (b == 0)  # where a = 0 the gradient is 0 either way
    torch.testing.assert_close(purity(a, b)[decided], closed[decided])


@given(pairs, st.floats(0, 1))
def test_purity_is_a_probability(rows: list[tuple[float, float]], eps: float) -> None:
    a, b = torch.tensor(rows).T
    assert ((purity(a, b, eps) >= 0) & (purity(a, b, eps) <= 1)).all()


def test_vanishing_gradients_agree() -> None:
    assert purity(torch.zeros(1), torch.zeros(1)).item() == 1
    assert purity(torch.zeros(1), torch.zeros(1), eps=1e-8).item() == 0.5  # as the code has it


def test_the_released_epsilon_drops_agreeing_gradients_of_its_own_size() -> None:
    small = torch.tensor([1e-8], dtype=torch.float64)
    assert purity(small, small, eps=1e-8).item() == pytest.approx(0.8333, abs=1e-4)
    assert purity(small, small).item() == 1


def test_keep_is_strict() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([-1.0])  # P = 1/2
    assert not keep(a, b, torch.tensor([0.5]))
    assert keep(a, b, torch.tensor([0.4999]))


@given(shapes.flatmap(lambda shape: arrays.arrays(bool, shape)).map(torch.from_numpy))
def test_bits_round_trip(mask: Tensor) -> None:
    packed = pack_bits(mask)
    assert packed.shape == (math.ceil(mask.numel() / 8),)
    assert torch.equal(unpack_bits(packed, tuple(mask.shape)), mask)


def test_bit_order_and_padding() -> None:
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    assert pack_bits(mask).tolist() == [0b10000001, 0b10000000]


@given(masks)
def test_masks_round_trip(original: dict[str, Tensor]) -> None:
    restored = unpack_masks(*pack_masks(original, "weights"), "weights")
    assert restored.keys() == original.keys()
    assert all(torch.equal(restored[name], original[name]) for name in original)


@settings(max_examples=50)
@given(masks, st.data())
def test_any_flipped_bit_is_noticed(original: dict[str, Tensor], data: st.DataObject) -> None:
    tensors, metadata = pack_masks(original, "weights")
    name = data.draw(st.sampled_from(sorted(tensors)))
    byte = data.draw(st.integers(0, len(tensors[name]) - 1))
    tensors[name][byte] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(MethodError, match="checksum"):
        unpack_masks(tensors, metadata, "weights")


ORIGINAL = {"a.weight": torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) > 0.5}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "taskres", "format"),
        ("format_version", "2", "update this program"),
        ("format_version", "0", "version"),
        ("format_version", "one", "version"),
        ("bit_order", "lsb-first", "msb-first"),
        ("backbone", "others", "belong to the backbone"),
        ("shapes", "[", "unreadable"),
        ("shapes", "[1, 2]", "unreadable"),
        ("shapes", json.dumps({"a.weight": [3, 50]}), "bits need"),
        ("shapes", json.dumps({"b.weight": [3, 5]}), "the same masks"),
        ("shapes", json.dumps({"a.weight": [5, 3]}), "checksum"),
        ("checksum", "0" * 64, "checksum"),
    ],
)
def test_refuses_a_wrong_header(key: str, value: str, message: str) -> None:
    tensors, metadata = pack_masks(ORIGINAL, "weights")
    with pytest.raises(MethodError, match=message):
        unpack_masks(tensors, metadata | {key: value}, "weights")


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, dtype=torch.uint8), torch.zeros(2), torch.zeros(3, dtype=torch.uint8)]
)
def test_refuses_a_wrong_length_or_type(wrong: Tensor) -> None:
    _, metadata = pack_masks(ORIGINAL, "weights")
    with pytest.raises(MethodError, match="damaged"):
        unpack_masks({"a.weight": wrong}, metadata, "weights")
