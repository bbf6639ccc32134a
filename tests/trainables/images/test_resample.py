"""Resampling against PIL's own, for every way of cutting, and against open_clip's transform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import trainables.backbones.open_clip  # noqa: F401 - before torchvision, which it lets import
from tests.trainables.data.shared import shared_data
from trainables.backbones.base import Preprocess
from trainables.images import resample as module
from trainables.images.resample import (
    Crop,
    Interpolation,
    ResizeMode,
    center_crop,
    resample,
    sizes_of,
)

from open_clip.transform import image_transform  # isort: skip
from torchvision.transforms import CenterCrop, Resize  # isort: skip

FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
SHARE = {"bicubic": 0.003, "bilinear": 0.1}
"""Bound of the share of pixels that may differ, nearly all by one grey level. A bilinear weight is
often a simple fraction, so that more values lie exactly between two grey levels."""
MOST = 2
"""Largest difference in grey levels: each of the two passes may round one value the other way."""
SHAPES = [(8, 8), (20, 31), (60, 40), (40, 61), (100, 75), (67, 100), (12, 180), (33, 32), (32, 32)]


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [3, h, w]: the hardest image to agree on."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resized(image: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """By PIL, along x and then along y, whichever order PIL would choose itself."""
    method = FILTERS[interpolation]
    once = pil(image).resize((width, image.shape[1]), method)
    return tensor(once.resize((width, height), method))


def gap(found: Tensor, expected: Tensor) -> tuple[int, float]:
    """Largest difference in grey levels, and the share of pixels that differ."""
    difference = (found.int() - expected.int()).abs()
    return int(difference.max()), float((difference > 0).double().mean())


def whole(images: Sequence[Tensor], side: int) -> Crop:
    return center_crop(sizes_of(images), side, "squash")


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("side", [7, 32, 50])
def test_whole_images_of_many_sizes_at_once(interpolation: Interpolation, side: int) -> None:
    images = [noise(*shape) for shape in SHAPES]
    found = resample(images, whole(images, side), side, interpolation)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert found.shape == (len(SHAPES), 3, side, side)
    for image, view in zip(images, found, strict=True):
        most, share = gap(view, resized(image, side, side, interpolation))
        assert most <= MOST
        assert share < SHARE[interpolation]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_box_is_cropped_and_then_resized(data: st.DataObject) -> None:
    """The filter does not see what lies beyond the box; a mirror changes nothing but the side."""
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    side, interpolation = data.draw(st.integers(1, 60)), data.draw(st.sampled_from(list(FILTERS)))
    mirror = data.draw(st.booleans())
    image = noise(height, width, data.draw(st.integers(0, 9)))
    square = torch.tensor([[side, side]])
    cut = Crop(
        torch.tensor([[top, left, h, w]]), square, torch.zeros_like(square), torch.tensor([mirror])
    )
    expected = resized(image[:, top : top + h, left : left + w], side, side, interpolation)
    expected = expected.flip(2) if mirror else expected
    assert gap(resample([image], cut, side, interpolation)[0], expected)[0] <= MOST


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 60), st.sampled_from(list(FILTERS)))
def test_the_centre_is_cut_as_torchvision_cuts_it(
    height: int, width: int, side: int, interpolation: Interpolation
) -> None:
    """The filter sees the whole image, which is resized before it is cropped."""
    image = noise(height, width)
    cut = center_crop(sizes_of([image]), side, "shortest")
    shape = Resize(side)(pil(image)).size[::-1]
    assert cut.scaled.tolist() == [list(shape)]
    expected = tensor(CenterCrop(side)(pil(resized(image, *shape, interpolation))))
    assert gap(resample([image], cut, side, interpolation)[0], expected)[0] <= MOST


def test_a_batch_is_its_images_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece or in many, beside larger images or alone."""
    images = [noise(*shape) for shape in SHAPES]
    cut = center_crop(sizes_of(images), 16, "shortest")
    together = resample(images, cut, 16)
    for row, image in enumerate(images):
        alone = resample([image], cut[row : row + 1], 16)[0]
        assert gap(alone, together[row])[0] <= MOST
    for piece in (1, 5000, 20000):
        monkeypatch.setattr(module, "_PIECE", piece)
        most, share = gap(resample(images, cut, 16), together)
        assert most <= MOST
        assert share < 1e-3


@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_longest_side_fits_and_the_rest_is_black(interpolation: Interpolation) -> None:
    shapes = [(300, 7), (7, 300), (64, 64), (65, 40), (13, 29), (500, 1)]
    for side in (16, 130):
        transform = image_transform(
            side,
            is_train=False,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation=interpolation,
            resize_mode="longest",
        )
        for shape in shapes[: 5 if side == 16 else 6]:
            image = noise(*shape)
            if round(min(shape) / (max(shape) / side)) == 0:
                continue  # open_clip fails there
            found = resample(
                [image], center_crop(sizes_of([image]), side, "longest"), side, interpolation
            )[0]
            photograph = Image.fromarray(image.permute(1, 2, 0).numpy())
            expected = transform(photograph).mul(255).round().to(torch.uint8)
            assert torch.equal(found.any(0), expected.any(0)) or gap(found, expected)[1] < 0.02
            assert gap(found, expected)[0] <= MOST


def test_no_image_at_all() -> None:
    assert resample([], whole([], 8), 8).shape == (0, 3, 8, 8)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = noise(32, 32)
    assert torch.equal(resample([image], whole([image], 32), 32)[0], image)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_photographs_look_as_through_open_clips_transform(
    mode: ResizeMode, interpolation: Interpolation
) -> None:
    """With the installed PIL, whose order of passes may be the other one: fewer than 1 pixel in
    100 differs by more than one grey level."""
    files = sorted(shared_data("dtd-10classes", "dtd", "images").rglob("*.jpg"))[::200]
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    theirs = image_transform(
        64, is_train=False, mean=zero, std=one, interpolation=interpolation, resize_mode=mode
    )
    photographs = [Image.open(file).convert("RGB") for file in files]
    ours = Preprocess(64, zero, one, interpolation, mode)
    found = ours.resize([tensor(photograph) for photograph in photographs])
    expected = torch.stack([theirs(p) for p in photographs]).mul(255).round().to(torch.uint8)
    assert len(found) >= 6
    difference = (found.int() - expected.int()).abs()
    assert (difference > 1).double().mean() < 0.01
    assert difference.double().mean() < 0.1
