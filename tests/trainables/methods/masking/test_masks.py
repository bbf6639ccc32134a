"""Packed masks against damage, and what other writers wrote."""

import json
import math
import re
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from trainables.methods.base import MethodError
from trainables.methods.masking.masks import (
    pack_bits,
    pack_masks,
    read_released_masks,
    unpack_bits,
    unpack_masks,
)

shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)
masks = st.dictionaries(
    st.text("abc.0", min_size=1, max_size=5),
    shapes.flatmap(lambda shape: arrays.arrays(bool, shape)).map(torch.from_numpy),
    min_size=1,
    max_size=4,
)


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
    try:
        restored = unpack_masks(tensors, metadata, "weights")
    except MethodError as error:
        assert re.search("checksum|damaged", str(error))  # noqa: PT017
    else:  # a zlib stream has a few bits that mean nothing
        assert name in json.loads(metadata["zlib"])
        assert all(torch.equal(restored[n], original[n]) for n in original)


ORIGINAL = {"a.weight": torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) > 0.5}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "taskres", "format"),
        ("format_version", "3", "update this program"),
        ("format_version", "0", "version"),
        ("format_version", "one", "version"),
        ("bit_order", "lsb-first", "msb-first"),
        ("backbone", "others", "must be of this backbone"),
        ("shapes", "[", "unreadable"),
        ("shapes", "[1, 2]", "unreadable"),
        ("shapes", json.dumps({"a.weight": [3, 50]}), "bits need"),
        ("shapes", json.dumps({"b.weight": [3, 5]}), "the same masks"),
        ("shapes", json.dumps({"a.weight": [5, 3]}), "checksum"),
        ("checksum", "0" * 64, "checksum"),
        ("zlib", "{", "damaged"),
        ("zlib", "3", "damaged"),
        ("zlib", json.dumps(["a.weight"]), "damaged"),
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


def test_version_1_stays_readable() -> None:
    """Uncompressed, and nothing in the header about compression."""
    sparse = {"a": torch.ones(64, 64, dtype=torch.bool)}
    _, metadata = pack_masks(sparse, "weights")
    old = {k: v for k, v in metadata.items() if k != "zlib"} | {"format_version": "1"}
    bits = {"a": pack_bits(sparse["a"])}
    assert torch.equal(unpack_masks(bits, old, "weights")["a"], sparse["a"])
    with pytest.raises(MethodError, match="damaged"):
        unpack_masks(bits, old | {"format_version": "2"}, "weights")


def test_zlib_where_it_pays() -> None:
    rng = torch.Generator().manual_seed(0)
    uniform = torch.rand(512, 512, generator=rng)
    both = {"noise": uniform > 0.5, "sparse": uniform > 0.0256}
    tensors, metadata = pack_masks(both, "weights")
    assert json.loads(metadata["zlib"]) == ["sparse"]
    assert torch.equal(tensors["noise"], pack_bits(both["noise"]))
    # 2.56 % of zeros, as R-AMT reports, are 0.17 bits of information each.
    assert tensors["sparse"].numel() < 0.3 * 512 * 512 / 8
    restored = unpack_masks(tensors, metadata, "weights")
    assert all(torch.equal(restored[name], both[name]) for name in both)


def test_a_stream_that_never_ends_is_refused() -> None:
    sparse = {"a": torch.ones(64, 64, dtype=torch.bool)}
    tensors, metadata = pack_masks(sparse, "weights")
    bomb = zlib.compress(bytes(10_000_000))
    for stream in (bomb, tensors["a"].numpy().tobytes() + b"more", b"\x78"):
        wrong = torch.from_numpy(np.frombuffer(stream, np.uint8).copy())
        with pytest.raises(MethodError, match="damaged"):
            unpack_masks({"a": wrong}, metadata, "weights")


SHAPES = {"conv1.weight": (4, 3, 2, 2), "b.attn.in_proj_weight": (9, 3), "b.out.weight": (3, 3)}


def released(**more: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What R-AMT's code saves, its bytes written by hand, and the masks it means."""
    rng = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(s, generator=rng) > 0.3 for n, s in SHAPES.items()}
    state: OrderedDict[str, bytes] = OrderedDict()
    for name, mask in masks.items():
        text = "".join(str(int(bit)) for bit in mask.flatten())
        text += "0" * (-len(text) % 8)
        value = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
        state[f"{name.rpartition('.')[0]}.mask_real"] = value
    moments = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    content = {"state_dict": state, "epoch": 30, "optimizer": moments, "val_result": None}
    return content | more, masks


def test_released_masks_are_read(tmp_path: Path) -> None:
    content, masks = released()
    torch.save(content, tmp_path / "model.pth.tar-30")
    found = read_released_masks(tmp_path / "model.pth.tar-30", SHAPES)
    assert list(found) == list(masks)
    assert all(torch.equal(found[name], masks[name]) for name in masks)


@pytest.mark.parametrize("before", ["", "visual.", "module.image_encoder."])
def test_released_masks_of_a_state_dict_alone_below_any_name(tmp_path: Path, before: str) -> None:
    """And which of the layers have masks is known from the names."""
    content, masks = released()
    state = {f"{before}{key}": value for key, value in content["state_dict"].items()}
    torch.save(state | {f"{before}ln.weight": torch.ones(2)}, tmp_path / "model.pth")
    found = read_released_masks(tmp_path / "model.pth", SHAPES | {"b.mlp.c_fc.weight": (5, 3)})
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)


class Gadget:
    """Something that only code can make again."""


@pytest.mark.parametrize(
    ("content", "shapes", "message"),
    [
        (released(scheduler=Gadget())[0], SHAPES, "without running code"),
        (b"no checkpoint", SHAPES, "without running code"),
        ([1], SHAPES, "state_dict"),
        ({"weights": 1}, SHAPES, "got none: load the backbone"),
        (released()[0], {"conv1.weight": (4, 3, 2, 2)}, r"got those of b\.attn\.mask_real"),
        (released()[0], SHAPES | {"b.out.weight": (3, 6)}, "must have the sizes of"),
    ],
)
def test_other_checkpoints_are_refused(
    tmp_path: Path, content: Any, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(MethodError, match=message):
        read_released_masks(path, shapes)


def test_bytes_of_a_newer_pickle_protocol_are_refused(tmp_path: Path) -> None:
    """The released code saves in torch's default protocol, whose byte strings are readable."""
    torch.save(released()[0], tmp_path / "model.pth", pickle_protocol=4)
    with pytest.raises(MethodError, match="default protocol"):
        read_released_masks(tmp_path / "model.pth", SHAPES)
