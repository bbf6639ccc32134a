"""Random crops against torchvision's RandomResizedCrop and RandomHorizontalFlip.

Where a crop lies is read off its own pixels: the images carry the coordinates of each pixel, and
are resampled bilinearly for this purpose, which reproduces coordinates exactly (bicubic does not).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import trainables.backbones.open_clip  # noqa: F401 - before torchvision, which it lets import
from trainables.data.augment import random_resized_crop

from torchvision.transforms import InterpolationMode, RandomResizedCrop  # isort: skip
from torchvision.transforms.functional import resized_crop  # isort: skip

SIDE = 32
DRAWS = 4000
KS_LIMIT = 1.95 * math.sqrt(2 / DRAWS)
"""The two-sample Kolmogorov-Smirnov statistic exceeds it once in a thousand comparisons."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(count: int) -> Tensor:
    """float [count, 3, SIDE, SIDE]: x and y of the pixel's centre, in pixels; a bright third."""
    line = torch.arange(SIDE) + 0.5
    x = line.expand(SIDE, SIDE)
    image = torch.stack([x, x.T, torch.full_like(x, 200.0)])
    return image.expand(count, 3, SIDE, SIDE)


def boxes(crops: Tensor) -> dict[str, np.ndarray]:
    """Where crops of `coordinates` lie, as shares of the side; width < 0: mirrored."""
    near, far = SIDE // 4, SIDE - SIDE // 4 - 1
    row = crops[:, 0, SIDE // 2].double()
    column = crops[:, 1, :, SIDE // 2].double()
    width = (row[:, far] - row[:, near]) / (far - near)  # input pixels an output pixel
    height = (column[:, far] - column[:, near]) / (far - near)
    left = (row[:, near] - width * (near + 0.5)) / SIDE
    top = (column[:, near] - height * (near + 0.5)) / SIDE
    found = {"left": left, "top": top, "width": width, "height": height}
    return {name: value.numpy() for name, value in found.items()}


@cache
def ours(scale: float) -> dict[str, np.ndarray]:
    sample = functional.grid_sample

    def bilinear(images: Tensor, grid: Tensor, mode: str, **rest: Any) -> Tensor:
        return sample(images, grid, mode="bilinear", **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "grid_sample", bilinear)
        return boxes(random_resized_crop(coordinates(DRAWS), scale, False, rng()))


@cache
def theirs(scale: float) -> dict[str, np.ndarray]:
    size = 4096  # so large that rounding to pixels does not show
    image = torch.empty(1).expand(3, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        drawn = [
            RandomResizedCrop.get_params(image, [scale, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)
        ]
    top, left, height, width = (np.array(values) / size for values in zip(*drawn, strict=True))
    return {"left": left, "top": top, "width": width, "height": height}


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest difference of the empirical distribution functions."""
    points = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(x), points, "right") / len(x) for x in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def slack(box: dict[str, np.ndarray], start: str, length: str) -> np.ndarray:
    """Where the crop lies between the two ends of its freedom, in 0..1, if it has any."""
    free = 1 - box[length]
    some = free > 1e-3
    return np.asarray(box[start][some] / free[some])


QUANTITIES = {
    "area": lambda box: np.round(box["width"] * box["height"], 4),
    "aspect": lambda box: np.round(np.log(box["width"] / box["height"]), 4),
    "left": lambda box: slack(box, "left", "width"),
    "top": lambda box: slack(box, "top", "height"),
    "width": lambda box: np.round(box["width"], 4),
}


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_crops_are_distributed_as_torchvisions(scale: float, quantity: str) -> None:
    measure = QUANTITIES[quantity]
    first, second = measure(ours(scale)), measure(theirs(scale))
    limit = 1.95 * math.sqrt(1 / len(first) + 1 / len(second))
    assert limit < 1.5 * KS_LIMIT
    assert distance(first, second) < limit


def test_the_comparison_can_tell_neighbours_apart() -> None:
    area = QUANTITIES["area"]
    assert distance(area(ours(0.5)), area(theirs(0.55))) > KS_LIMIT


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_crops_lie_inside_the_image_and_in_their_ranges(scale: float) -> None:
    box = ours(scale)
    error = 1e-4
    for start, length in (("left", "width"), ("top", "height")):
        assert box[start].min() > -error
        assert (box[start] + box[length]).max() < 1 + error
    area, aspect = box["width"] * box["height"], box["width"] / box["height"]
    assert area.min() > scale - error
    assert area.max() < 1 + error
    assert aspect.min() > 3 / 4 - error
    assert aspect.max() < 4 / 3 + error


def test_scale_one_shows_the_whole_image() -> None:
    images = torch.randint(0, 256, (6, 3, SIDE, SIDE), generator=rng(3), dtype=torch.uint8)
    crops = random_resized_crop(images, 1.0, False, rng())
    assert crops.dtype == torch.float32
    torch.testing.assert_close(crops, images.float(), atol=0.01, rtol=0)


def test_a_flip_mirrors_and_nothing_else() -> None:
    images = torch.randint(0, 256, (200, 3, SIDE, SIDE), generator=rng(4), dtype=torch.uint8)
    straight = random_resized_crop(images, 0.5, False, rng())
    flipped = random_resized_crop(images, 0.5, True, rng())
    mirrored = [
        not torch.allclose(one, other, atol=1e-2)
        for one, other in zip(straight, flipped, strict=True)
    ]
    for one, other, mirror in zip(straight, flipped, mirrored, strict=True):
        expected = one.flip(-1) if mirror else one
        torch.testing.assert_close(other, expected, atol=0.02, rtol=0)
    assert 70 < sum(mirrored) < 130  # over four standard deviations of a fair coin


def test_the_generator_decides_alone() -> None:
    images = torch.randint(0, 256, (5, 3, SIDE, SIDE), generator=rng(5), dtype=torch.uint8)
    first = random_resized_crop(images, 0.5, True, rng(1))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(random_resized_crop(images, 0.5, True, rng(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(random_resized_crop(images, 0.5, True, rng(2)), first)


def test_the_same_draws_whatever_is_asked_for() -> None:
    """Scale, flip and image size do not change how much is drawn from the generator."""
    states = []
    for size, scale, flip in ((8, 0.2, False), (8, 1.0, True), (40, 0.7, True)):
        generator = rng()
        random_resized_crop(torch.zeros(3, 3, size, size), scale, flip, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_values_stay_in_range() -> None:
    """Bicubic weights overshoot at edges: black and white noise is the worst case."""
    images = 255 * torch.randint(0, 2, (50, 3, SIDE, SIDE), generator=rng(6), dtype=torch.uint8)
    before = images.clone()
    crops = random_resized_crop(images, 0.3, True, rng())
    assert crops.min() == 0
    assert crops.max() == 255
    assert torch.equal(images, before)


def forced(monkeypatch: pytest.MonkeyPatch, scale: float, box: tuple[int, int, int, int]) -> None:
    """Let the uniform draws be those that lead to `box` = (top, left, height, width) in pixels."""
    top, left, height, width = box
    share = height * width / SIDE**2
    area = (share - scale) / (1 - scale)
    ratio = (math.log(width / height) - math.log(3 / 4)) / (math.log(4 / 3) - math.log(3 / 4))
    corner = [left / (SIDE - width), top / (SIDE - height)]
    assert 0 <= area <= 1
    assert 0 <= ratio <= 1

    def rand(*shape: int, generator: torch.Generator) -> Tensor:
        match shape:
            case (batch, tries, 2):
                return torch.tensor([area, ratio]).expand(batch, tries, 2)
            case (batch, 2):
                return torch.tensor(corner).expand(batch, 2)
            case (batch,):
                return torch.full((batch,), 0.9)
        raise AssertionError(shape)

    monkeypatch.setattr(torch, "rand", rand)


@pytest.mark.parametrize("box", [(0, 0, 24, 24), (5, 3, 26, 24), (8, 2, 20, 25), (7, 8, 25, 22)])
def test_pixels_are_torchvisions(
    box: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away from the crop's border they agree to 0.001 of 255 grey levels, on noise.

    At the border ours looks at the pixels beyond the crop, which torchvision has cut off before
    it resamples: the outermost two pixels may differ, on a smooth image by less than 2.5 levels.
    """
    top, left, height, width = box
    noise = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=rng(7)).float()
    wave = torch.linspace(0, 6, SIDE)
    smooth = (127 + 60 * torch.sin(wave)[:, None] + 60 * torch.cos(wave)[None]).expand(1, 3, -1, -1)
    forced(monkeypatch, 0.3, box)
    for images, border, tolerance in ((noise, 2, 0.001), (smooth, 0, 2.5)):
        found = random_resized_crop(images, 0.3, False, rng())
        expected = resized_crop(
            images,
            *(top, left, height, width),
            size=[SIDE, SIDE],
            interpolation=InterpolationMode.BICUBIC,
            antialias=False,
        ).clamp(0, 255)
        inner = slice(border, SIDE - border)
        gap = (found - expected)[..., inner, inner].abs().max()
        assert gap < tolerance
