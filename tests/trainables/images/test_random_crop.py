"""Random crops against torchvision's RandomResizedCrop and RandomHorizontalFlip."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import trainables.backbones.open_clip  # noqa: F401 - before torchvision, which it lets import
from tests.trainables.data.shared import shared_data
from trainables.images.resample import Crop, random_crop, resample, sizes_of

from torchvision.transforms import InterpolationMode, RandomResizedCrop  # isort: skip
from torchvision.transforms.functional import hflip, resized_crop  # isort: skip

DRAWS = 4000
SHAPES = {"landscape": (375, 500), "portrait": (500, 333), "digit": (8, 8), "strip": (40, 400)}
"""Photographs; an image of few pixels, where rounding matters; one without a fitting crop."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cuts(
    count: int, scale: float, shape: tuple[int, int] = (32, 32), seed: int = 0, flip: bool = True
) -> Crop:
    return random_crop(torch.tensor([shape]).expand(count, 2), 16, scale, flip, rng(seed))


@cache
def ours(shape: tuple[int, int], scale: float) -> np.ndarray:
    """Boxes [DRAWS, 4]: top, left, height, width."""
    return cuts(DRAWS, scale, shape).box.numpy()


@cache
def theirs(shape: tuple[int, int], scale: float) -> np.ndarray:
    image = torch.empty(1).expand(3, *shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return np.array(
            [
                RandomResizedCrop.get_params(image, [scale, 1.0], [3 / 4, 4 / 3])
                for _ in range(DRAWS)
            ]
        )


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest difference of the empirical distribution functions."""
    points = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(x), points, "right") / len(x) for x in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def quantities(boxes: np.ndarray) -> dict[str, np.ndarray]:
    top, left, height, width = boxes.T
    return {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "area": height * width,
        "aspect": np.log(width / height),
        "bottom": top + height,
        "right": left + width,
    }


LIMIT = 1.95 * math.sqrt(2 / DRAWS)
"""The two-sample Kolmogorov-Smirnov statistic exceeds it once in a thousand comparisons."""


@pytest.mark.parametrize("scale", [0.08, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_boxes_are_distributed_as_torchvisions(shape: tuple[int, int], scale: float) -> None:
    found, expected = quantities(ours(shape, scale)), quantities(theirs(shape, scale))
    for name in found:
        assert distance(found[name], expected[name]) < LIMIT, name


def test_the_comparison_can_tell_neighbours_apart() -> None:
    shape = SHAPES["landscape"]
    found, expected = quantities(ours(shape, 0.5)), quantities(theirs(shape, 0.55))
    assert distance(found["area"], expected["area"]) > LIMIT


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=50, deadline=None)
def test_boxes_are_whole_and_inside(height: int, width: int, scale: float) -> None:
    cut = cuts(50, scale, (height, width))
    top, left, h, w = cut.box.unbind(1)
    assert cut.box.dtype == torch.int64
    assert min(int(h.min()), int(w.min())) >= 1
    assert min(int(top.min()), int(left.min())) >= 0
    assert int((top + h).max()) <= height
    assert int((left + w).max()) <= width
    assert (cut.scaled == 16).all()
    assert (cut.corner == 0).all()


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_where_nothing_fits_the_centre_is_taken_as_torchvision_takes_it(
    height: int, width: int
) -> None:
    """Of a share of 4 none fits: both fall back to the crop from the centre."""
    expected = RandomResizedCrop.get_params(
        torch.empty(1).expand(3, height, width), [4.0, 4.0], [3 / 4, 4 / 3]
    )
    assert cuts(1, 4.0, (height, width)).box[0].tolist() == list(expected) or height == width == 1


def test_scale_one_shows_the_whole_square() -> None:
    assert (cuts(50, 1.0).box == torch.tensor([0, 0, 32, 32])).all()


def test_a_fair_coin_mirrors_where_it_may() -> None:
    assert 1860 < int(cuts(DRAWS, 0.5).mirror.sum()) < 2140  # over four standard deviations
    assert not cuts(DRAWS, 0.5, flip=False).mirror.any()
    assert torch.equal(cuts(9, 0.5, flip=False).box, cuts(9, 0.5).box)


def test_the_generator_decides_alone() -> None:
    first = cuts(5, 0.5, seed=1)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(cuts(5, 0.5, seed=1).box, first.box)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(cuts(5, 0.5, seed=2).box, first.box)


def test_the_same_draws_whatever_is_asked_for() -> None:
    """Scale, flip and image size do not change how much is drawn from the generator."""
    states = []
    for side, scale, flip in ((8, 0.2, False), (8, 1.0, True), (40, 0.7, True)):
        generator = rng()
        random_crop(torch.full((3, 2), side), side, scale, flip, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize("scale", [0.08, 0.5])
def test_pixels_are_torchvisions(scale: float) -> None:
    """Given the same boxes, on photographs: fewer than 1 pixel in 100 differs by more than one
    grey level (only where the installed PIL takes its passes in the other order)."""
    files = sorted(shared_data("dtd-10classes", "dtd", "images").rglob("*.jpg"))[::100]
    photographs = [Image.open(file).convert("RGB") for file in files]
    images = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in photographs]
    cut = random_crop(sizes_of(images), 64, scale, True, rng())
    assert 0 < int(cut.mirror.sum()) < len(images)
    found = resample(images, cut, 64)
    for photo, view, box, mirror in zip(
        photographs, found, cut.box.tolist(), cut.mirror.tolist(), strict=True
    ):
        expected = resized_crop(photo, *box, size=[64, 64], interpolation=InterpolationMode.BICUBIC)
        expected = hflip(expected) if mirror else expected
        pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        difference = (view.int() - pixels.int()).abs()
        assert (difference > 1).double().mean() < 0.01
