"""Random crops and mirror images of a whole batch at once, on the device it lies on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_TRIES = 10


def random_resized_crop(images: Tensor, scale: float, flip: bool, rng: torch.Generator) -> Tensor:
    """RandomResizedCrop and RandomHorizontalFlip(0.5): uint8 [b, 3, s, s] -> float32, 0..255.

    As torchvision draws it: the crop's share of the area is uniform in (scale, 1), its aspect
    ratio log-uniform in (3/4, 4/3), the first of ten draws that fits is taken, the whole image
    where none does. Pixels are resampled bicubically at the size s of the stored view, without a
    low-pass filter, which a crop (an enlargement) does not need. `rng` is a CPU generator, so that
    a seed gives the same crops on every device.
    """
    batch, size = len(images), images.shape[-1]
    draws = torch.rand(batch, _TRIES, 2, generator=rng)
    area = scale + (1 - scale) * draws[..., 0]
    ratio = torch.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[..., 1])
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    none = ~fits.any(1)
    width = width.gather(1, first).squeeze(1).masked_fill(none, 1.0)
    height = height.gather(1, first).squeeze(1).masked_fill(none, 1.0)
    corner = torch.rand(batch, 2, generator=rng)
    mirror = torch.rand(batch, generator=rng) < 0.5
    # The sampling grid of grid_sample runs over -1..1: a crop is a scale and an offset of it.
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = torch.where(mirror & flip, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * (2 * corner[:, 0] - 1)
    theta[:, 1, 2] = (1 - height) * (2 * corner[:, 1] - 1)
    grid = functional.affine_grid(
        theta.to(images.device), [batch, 3, size, size], align_corners=False
    )
    views = functional.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return views.clamp_(0, 255)
