"""A split with a backbone: features and images of files, of pixels in memory, and of neither."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.trainables.data.shared import shared_data
from trainables.backbones.base import Backbone
from trainables.core.store import Store
from trainables.data.base import DataError, PixelRows, Split
from trainables.data.image_files import ImageFiles
from trainables.encoded_task import EncodedTask
from trainables.images.decode import shrink
from trainables.images.resample import random_crop, resample, sizes_of
from trainables.view import ENCODE_BATCH, View

SIZES = [(40, 50), (50, 40), (32, 32), (8, 8), (64, 64), (63, 300), (65, 70), (150, 100)]
"""Height and width; the last two are more than twice as large as the model's 32 pixels."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "features")


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Files with noise, which no two resamplers or crops show alike by chance."""
    rng = np.random.default_rng(0)
    for row, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
    files = ImageFiles(tmp_path, tuple(f"{row}.png" for row in range(len(SIZES))))
    return Split(files, torch.arange(len(SIZES)) % 3, "f" * 64)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each file is decoded."""
    found: Counter[int] = Counter()
    original = ImageFiles.read

    def read(self: ImageFiles, position: int) -> Tensor:
        found[position] += 1
        return original(self, position)

    monkeypatch.setattr(ImageFiles, "read", read)
    return found


def everything(view: View) -> Tensor:
    return torch.cat(list(view.batches(3)))


def originals(split: Split) -> list[Tensor]:
    return [split.images.read(row) for row in range(len(split.images))]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("keep", [True, False])
def test_features_are_those_of_the_test_transform(
    keep: bool, split: Split, store: Store, encoded_task: EncodedTask
) -> None:
    backbone = encoded_task.backbone
    view = View(split, True, backbone, store, keep=keep)
    features = view.features()
    assert features.dtype == torch.float32
    assert torch.equal(view.labels, split.labels)
    assert len(view) == len(SIZES)
    for image, feature in zip(originals(split), features, strict=True):
        pixels = backbone.preprocess.normalise(backbone.preprocess.resize([image]))
        torch.testing.assert_close(feature, backbone.encode_image(pixels)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", [True, False])
def test_test_views_are_of_the_originals_whatever_their_size(
    keep: bool, split: Split, store: Store, encoded_task: EncodedTask
) -> None:
    view = View(split, True, encoded_task.backbone, store, keep=keep)
    expected = encoded_task.backbone.preprocess.resize(originals(split))
    index = torch.tensor([7, 0, 6, 0])
    assert torch.equal(everything(view), expected)
    assert torch.equal(view.images(index), expected[index])


def test_kept_images_are_decoded_once_a_machine(
    split: Split, store: Store, encoded_task: EncodedTask, reads: Counter[int]
) -> None:
    for _ in range(2):  # two processes
        view = View(split, True, encoded_task.backbone, store, keep=True)
        view.images(torch.tensor([1]))
        view.crops(torch.tensor([2, 3]), 0.5, rng())
        view.features(1, 0.5)
        view.features()
        everything(view)
    assert reads == dict.fromkeys(range(len(SIZES)), 1)


def test_features_alone_need_no_file_of_images(
    split: Split, store: Store, encoded_task: EncodedTask, reads: Counter[int]
) -> None:
    alone = View(split, True, encoded_task.backbone, store, keep=True).features()
    assert len(list(store.root.iterdir())) == 1
    assert set(reads.values()) == {1}
    again = View(split, True, encoded_task.backbone, store, keep=True).features()
    assert set(reads.values()) == {1}
    assert torch.equal(again, alone)
    other = Store(store.root.parent / "other")
    view = View(split, True, encoded_task.backbone, other, keep=True)
    everything(view)  # now there is a file of images, and features come from it
    assert torch.equal(view.features(), alone)


@pytest.mark.parametrize("scale", [0.08, 0.5])
@pytest.mark.parametrize("flip", [True, False])
def test_crops_are_cut_from_the_originals(
    scale: float, flip: bool, split: Split, store: Store, encoded_task: EncodedTask
) -> None:
    """From images of at most twice the model's size as they are; from larger ones, reduced."""
    view = View(split, flip, encoded_task.backbone, store, keep=True)
    index = torch.tensor([5, 0, 6, 7])
    sources = [shrink(originals(split)[row], 64) for row in index.tolist()]
    assert [tuple(source.shape[1:]) for source in sources] == [
        SIZES[5],
        SIZES[0],
        (64, 69),
        (96, 64),
    ]
    cut = random_crop(sizes_of(sources), 32, scale, flip, rng(4))
    found = view.crops(index, scale, rng(4))
    assert torch.equal(found, resample(sources, cut, 32))


def test_crops_of_reduced_photographs_are_nearly_those_of_the_originals() -> None:
    """What reducing to twice the model's size costs: 1.6 grey levels on average, on textures; boxes
    of whole pixels that cannot quite agree have their share in it."""
    files = sorted(shared_data("dtd-10classes", "dtd", "images").rglob("*.jpg"))[::100]
    photographs = [
        torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        for file in files
    ]
    small = [shrink(photograph, 128) for photograph in photographs]
    scale = sizes_of(small) / sizes_of(photographs)
    cut = random_crop(sizes_of(small), 64, 0.5, False, rng())
    large = replace(cut, box=(cut.box / scale.repeat(1, 2)).round().long())
    difference = resample(small, cut, 64).int() - resample(photographs, large, 64).int()
    assert difference.abs().double().mean() < 2


def test_augmented_views_are_the_same_everywhere(
    split: Split, store: Store, encoded_task: EncodedTask
) -> None:
    """Whoever computes them, in whatever order; each differs from all others."""
    first = View(split, True, encoded_task.backbone, store, keep=True)
    second = View(split, True, encoded_task.backbone, Store(store.root / "other"), keep=True)
    numbers = (1, 2, 3)
    found = [first.features(number, 0.5) for number in numbers]
    torch.manual_seed(5)
    for number, features in zip(reversed(numbers), reversed(found), strict=True):
        assert torch.equal(second.features(number, 0.5), features)
    others = [
        first.features(),
        first.features(1, 0.4),
        View(split, False, encoded_task.backbone, store, keep=True).features(1, 0.5),
    ]
    rows = torch.stack([*found, *others])
    assert len(rows.unique(dim=0)) == len(rows)
    assert torch.equal(first.features(5, 1.0), first.features())  # nothing is cropped at scale 1


def test_changed_images_are_other_images(
    split: Split, store: Store, encoded_task: EncodedTask
) -> None:
    """A file is replaced: its name and label stay, its content changes."""
    before = View(split, True, encoded_task.backbone, store).features()
    assert isinstance(split.images, ImageFiles)
    Image.new("RGB", (40, 40), "red").save(split.images.root / "0.png")
    after = View(split, True, encoded_task.backbone, store).features()
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("keep", [True, False])
def test_an_unreadable_image_is_named_and_nothing_is_left(
    keep: bool, split: Split, store: Store, encoded_task: EncodedTask
) -> None:
    assert isinstance(split.images, ImageFiles)
    (split.images.root / "4.png").write_bytes(b"no image")
    view = View(split, True, encoded_task.backbone, store, keep=keep)
    with pytest.raises(DataError, match=r"4\.png"):
        view.features()
    with pytest.raises(DataError, match=r"4\.png"):
        everything(view)
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
def test_images_are_encoded_in_batches_in_order(
    count: int, store: Store, encoded_task: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=rng(count), dtype=torch.uint8)
    sizes = []

    def mean(self: Backbone, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.flatten(1).mean(1, keepdim=True)

    monkeypatch.setattr(Backbone, "encode_image", mean)
    split = Split(PixelRows(pixels), torch.zeros(count, dtype=torch.int64), str(count))
    found = View(split, True, encoded_task.backbone, store).features()
    expected = encoded_task.backbone.preprocess.normalise(pixels).flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(found, expected)
    assert max(sizes) <= ENCODE_BATCH
    assert sum(sizes) == count


def test_pixels_in_memory_need_no_file(store: Store, encoded_task: EncodedTask) -> None:
    pixels = torch.randint(0, 256, (5, 3, 8, 8), generator=rng(), dtype=torch.uint8)
    split = Split(PixelRows(pixels), torch.zeros(5, dtype=torch.int64), "p")
    view = View(split, False, encoded_task.backbone, store, keep=True)
    assert torch.equal(everything(view), encoded_task.backbone.preprocess.resize(pixels))
    index = torch.tensor([4, 1])
    cut = random_crop(sizes_of(pixels[index]), 32, 0.5, False, rng(2))
    found = view.crops(index, 0.5, rng(2))
    assert torch.equal(found, resample(pixels[index], cut, 32))
    assert not store.root.exists()
