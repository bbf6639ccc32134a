"""Random crops and mirror images, drawn as torchvision draws them, for a whole batch at once.

Notation: b images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainables.images.resample import Crop

_TRIES = 10
_RATIO = (3 / 4, 4 / 3)


def random_cut(sizes: Tensor, side: int, scale: float, flip: bool, rng: torch.Generator) -> Crop:
    """RandomResizedCrop and RandomHorizontalFlip(0.5), for images of `sizes` int64 [b, 2].

    A crop's share of the image's area is uniform in (scale, 1), its aspect ratio log-uniform in
    (3/4, 4/3); the first of ten draws that fits, in whole pixels, is taken, and its place is
    uniform; where none fits, it is the largest crop from the centre that keeps the ratio.
    `rng` is a CPU generator: a seed gives the same crops on every device, and as many numbers are
    drawn whatever is asked for.
    """
    count = len(sizes)
    draws = torch.rand(count, _TRIES, 2, generator=rng, dtype=torch.float64)
    place = torch.rand(count, 2, generator=rng, dtype=torch.float64)
    mirror = (torch.rand(count, generator=rng) < 0.5) & flip
    area = sizes.double().prod(1, keepdim=True) * (scale + (1 - scale) * draws[..., 0])
    low, high = map(math.log, _RATIO)
    ratio = (low + (high - low) * draws[..., 1]).exp()
    tried = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2).round().long()
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(2)
    first = fits.int().argmax(1)
    shape = tried[torch.arange(count), first]
    corner = (place * (sizes - shape + 1)).long()
    # torchvision rounds the longer side of the crop from the centre, and its corner down.
    whole = _central(sizes)
    none = ~fits.any(1, keepdim=True)
    shape = torch.where(none, whole, shape)
    corner = torch.where(none, (sizes - whole) // 2, corner)
    return Crop(
        torch.cat([corner, shape], 1),
        torch.full_like(sizes, side),
        torch.zeros_like(sizes),
        mirror,
    )


def _central(sizes: Tensor) -> Tensor:
    """The largest shapes [b, 2] inside `sizes` whose aspect ratio is allowed."""
    height, width = sizes.double().unbind(1)
    low, high = _RATIO
    return torch.stack(
        [
            torch.minimum(height, (width / low).round()),
            torch.minimum(width, (height * high).round()),
        ],
        1,
    ).long()
