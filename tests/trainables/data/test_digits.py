"""The split of the digits: its stated rule, once more and independently."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from trainables.data.base import Images, PixelRows, SealedError, Split
from trainables.data.digits import Digits
from trainables.data.registry import open_dataset
from trainables.data.sealed import read_test_split

SIZES = {"train": 605, "val": 296, "test": 896}
FINGERPRINTS = {
    ("digits", "train"): "c3db3950afed211538a41d09067fbab3b680c08c36ec894381398842fc364a1f",
    ("digits", "val"): "976f71100c8873f44701a1456b24cf115c4e7d1fd364ad713402dea5edbb2e23",
    ("digits", "test"): "31af42f5d6b48d7c0141e42bbd1d4df48cdfe2d741ddd3d250f8c7c78b97734c",
    ("digits-rotated", "train"): "5893eae91750dced9bc8825a8fb0674ef4099f780de7a9accd02f0f310bac814",
    ("digits-rotated", "val"): "fecd2a8711323743275c69e65dca1b4cf2e97c46da7bd496be85628a1a698d97",
    ("digits-rotated", "test"): "02720444c148111c5e5b14961e0abed39a52ed2bfc1a26c9b1ea4aa2fa8993bd",
}
"""Recorded once: results that were published on these splits stay comparable."""


def split(name: str, part: str) -> Split:
    """Any of the three."""
    dataset = open_dataset(name)
    if part == "test":
        return read_test_split(dataset, lambda: None)
    return dataset.split(part)  # type: ignore[arg-type]


def by_the_rule() -> dict[str, list[tuple[bytes, int]]]:
    """«Within each class sorted by the SHA-256 of their 64 pixel bytes; the first n // 2 are test,
    the next n // 6 validation, the rest train», from the raw values 0..16, without numpy."""
    raw = load_digits()
    classes: dict[int, list[bytes]] = defaultdict(list)
    for values, label in zip(raw.data.tolist(), raw.target.tolist(), strict=True):
        classes[label].append(bytes(round(value * 255 / 16) for value in values))
    parts: dict[str, list[tuple[bytes, int]]] = {"train": [], "val": [], "test": []}
    for label in sorted(classes):
        ordered = sorted(classes[label], key=lambda pixels: hashlib.sha256(pixels).hexdigest())
        n = len(ordered)
        cuts = {
            "test": (0, n // 2),
            "val": (n // 2, n // 2 + n // 6),
            "train": (n // 2 + n // 6, n),
        }
        for part, (start, stop) in cuts.items():
            parts[part] += [(pixels, label) for pixels in ordered[start:stop]]
    return parts


def tensor(images: Images) -> Tensor:
    """uint8 [n, 3, h, w]: digits are in memory."""
    assert isinstance(images, PixelRows)
    return images.pixels


def pixels(rows: Images) -> list[bytes]:
    """The 64 bytes of each image, which must be the same in all three channels."""
    images = tensor(rows)
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (3, 8, 8)
    assert torch.equal(images[:, :1].expand_as(images), images)
    return [image.numpy().tobytes() for image in images[:, 0]]


@pytest.mark.parametrize("part", SIZES)
def test_the_split_follows_its_rule(part: str) -> None:
    found = split("digits", part)
    assert len(found.images) == SIZES[part]
    assert (
        list(zip(pixels(found.images), found.labels.tolist(), strict=True)) == by_the_rule()[part]
    )
    assert found.labels.dtype == torch.int64


def test_the_splits_are_disjoint_and_cover_everything() -> None:
    parts = {part: set(pixels(split("digits", part).images)) for part in SIZES}
    assert {part: len(found) for part, found in parts.items()} == SIZES  # no image twice
    union = parts["train"] | parts["val"] | parts["test"]
    assert len(union) == sum(SIZES.values()) == 1797
    raw = load_digits().data.tolist()
    assert union == {bytes(round(value * 255 / 16) for value in values) for values in raw}


@pytest.mark.parametrize("part", SIZES)
def test_rotated_means_turned_by_180_degrees(part: str) -> None:
    upright, turned = split("digits", part), split("digits-rotated", part)
    assert pixels(turned.images) == [image[::-1] for image in pixels(upright.images)]
    assert pixels(turned.images) != pixels(upright.images)
    assert torch.equal(turned.labels, upright.labels)


@pytest.mark.parametrize(("name", "part"), FINGERPRINTS)
def test_fingerprints_are_for_ever(name: str, part: str) -> None:
    assert split(name, part).fingerprint == FINGERPRINTS[name, part]


def test_the_fingerprint_sees_images_labels_and_name() -> None:
    assert len(set(FINGERPRINTS.values())) == len(FINGERPRINTS)
    assert Digits("other").split("val").fingerprint != FINGERPRINTS["digits", "val"]


def test_taking_rows_changes_the_fingerprint() -> None:
    whole = split("digits", "val")
    forward, backward = whole.take(torch.tensor([3, 5])), whole.take(torch.tensor([5, 3]))
    assert torch.equal(tensor(forward.images), tensor(whole.images)[[3, 5]])
    assert torch.equal(backward.labels, whole.labels[[5, 3]])
    assert len({whole.fingerprint, forward.fingerprint, backward.fingerprint}) == 3


@pytest.mark.parametrize("part", ["test", "TEST", "all", ""])
def test_nothing_but_train_and_val_is_open(part: str) -> None:
    with pytest.raises(SealedError, match="Only 'train' and 'val' are open"):
        open_dataset("digits").split(part)  # type: ignore[arg-type]


def test_class_names_are_the_labels_in_words() -> None:
    names = open_dataset("digits").class_names
    assert len(names) == 10
    assert (names[0], names[3], names[8], names[9]) == ("zero", "three", "eight", "nine")
    texts = open_dataset("digits").prompts("single").texts()
    assert [text[0] for text in texts] == [f"a photo of the digit {name}." for name in names]
    assert not open_dataset("digits").flip


def test_a_caller_cannot_change_the_data_of_the_next() -> None:
    first = split("digits", "val")
    tensor(first.images).zero_()
    first.labels.zero_()
    assert tensor(split("digits", "val").images).any()
    assert split("digits", "val").labels.any()


def test_rotated_digits_have_the_labels_of_upright_ones() -> None:
    rotated = open_dataset("digits-rotated")
    assert isinstance(rotated, Digits)
    assert rotated.source_classes == tuple(range(10))
