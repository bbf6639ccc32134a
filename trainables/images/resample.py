"""Cropping and resizing of whole batches on any device, with PIL's results.

PIL resizes an image along x, rounds to uint8, then along y, and rounds again. Each pass is a matrix
product with one row of filter weights per output pixel. Here the products of a batch run at once,
and the result differs from PIL's by one grey level (very rarely two) if a value is at the edge of
rounding. Pillow 13 starts with y if that is less work; the order here is always that of Pillow 12
and earlier, so features do not depend on its version.

Notation: b images, h x w pixels of a source, s side of the square output, k filter taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]

_RADIUS: dict[Interpolation, float] = {"bicubic": 2.0, "bilinear": 1.0}
"""Half the width of a filter, in pixels of the coarser of the two grids."""
_BAND = 56  # output pixels that are computed by one product
_PIECE = 1 << 21  # pixels that are resampled at once: enough for a GPU, little memory on a CPU
_TRIES = 10
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Crop:
    """The visible part of each image: a box is cut out and scaled, and a square is cut out of that.

    The filter sees only the box, as if the image is cropped before it is resized. To resize before
    cropping, the box is the whole image.
    """

    box: Tensor
    """int64 [b, 4]: top, left, height, width in the source, in pixels."""
    scaled: Tensor
    """int64 [b, 2]: height and width that the box is resized to."""
    corner: Tensor
    """int64 [b, 2]: top and left of the square output in the resized box."""
    mirror: Tensor
    """bool [b]: whether the image is mirrored."""

    def __getitem__(self, rows: Tensor | slice) -> Crop:
        """The crops of some images."""
        return Crop(self.box[rows], self.scaled[rows], self.corner[rows], self.mirror[rows])


def sizes_of(images: Tensor | Sequence[Tensor]) -> Tensor:
    """Return height and width of uint8 [3, h, w] images: int64 [b, 2]."""
    return torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64).view(-1, 2)


def center_crop(sizes: Tensor, side: int, mode: ResizeMode) -> Crop:
    """Return the test crops of torchvision and open_clip, for images of `sizes` [b, 2].

    `shortest`: the shorter side becomes `side`, the longer one is rounded down, and the centre is
    cut out, half pixels to even. `longest`: the longer side becomes `side`, and black fills the
    rest, half a pixel more below and to the right. `squash`: both sides become `side`.
    """
    scaled = torch.full_like(sizes, side)
    if mode == "shortest":
        # In Python's numbers, as in torchvision: a float32 would sometimes round up.
        rows = [
            (side, int(side * w / h)) if h <= w else (int(side * h / w), side)
            for h, w in sizes.tolist()
        ]
        scaled = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
    if mode == "longest":
        rows = [
            (max(1, round(h / (max(h, w) / side))), max(1, round(w / (max(h, w) / side))))
            for h, w in sizes.tolist()
        ]
        scaled = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
    corner = ((scaled - side).double() / 2).round().long()
    if mode == "longest":
        corner = -((side - scaled) // 2)
    box = torch.cat([torch.zeros_like(sizes), sizes], 1)
    return Crop(box, scaled, corner, torch.zeros(len(sizes), dtype=torch.bool))


def random_crop(sizes: Tensor, side: int, scale: float, flip: bool, rng: torch.Generator) -> Crop:
    """Draw crops like torchvision's RandomResizedCrop and RandomHorizontalFlip(0.5), for images of
    `sizes` int64 [b, 2].

    A crop's share of the image's area is uniform in (scale, 1), its aspect ratio log-uniform in
    (3/4, 4/3). The first of ten draws that fits, in whole pixels, is used at a uniform place; if
    none fits, the largest central crop that keeps the ratio. `rng` is a CPU generator: a seed gives
    the same crops on every device, and the number of draws is fixed.
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


def resample(
    images: Tensor | Sequence[Tensor],
    crop: Crop,
    side: int,
    interpolation: Interpolation = "bicubic",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Images uint8 [3, h, w] of any sizes -> uint8 [b, 3, s, s] on `device`, with s = `side`."""
    pieces = [
        _resample(images[rows], crop[rows], side, interpolation, torch.device(device))
        for rows in _pieces(crop.box[:, 2:])
    ]
    return torch.cat(pieces) if pieces else torch.empty(0, 3, side, side, dtype=torch.uint8)


def _pieces(sizes: Tensor) -> Iterator[slice]:
    """Runs of images with at most `_PIECE` pixels when padded to the largest of the run."""
    start, height, width = 0, 0, 0
    for row, (h, w) in enumerate(sizes.tolist()):
        height, width = max(height, h), max(width, w)
        if row > start and (row + 1 - start) * height * width > _PIECE:
            yield slice(start, row)
            start, height, width = row, h, w
    if len(sizes) > start:
        yield slice(start, len(sizes))


def _resample(
    images: Tensor | Sequence[Tensor],
    crop: Crop,
    side: int,
    interpolation: Interpolation,
    device: torch.device,
) -> Tensor:
    height, width = crop.box[:, 2:].amax(0).tolist()
    # Lines before channels: both products then are plain batches of matrices.
    padded = torch.zeros(len(images), height, 3, width, dtype=torch.uint8)
    for row, (top, left, h, w) in enumerate(crop.box.tolist()):
        box = images[row][:, top : top + h, left : left + w]
        padded[row, :h, :, :w] = box.transpose(0, 1)
    column = crop.corner[:, 1:] + torch.arange(side)
    column = torch.where(crop.mirror[:, None], column.flip(1), column)
    line = crop.corner[:, :1] + torch.arange(side)
    across = _weights(crop.box[:, 3], crop.scaled[:, 1], column, width, interpolation)
    down = _weights(crop.box[:, 2], crop.scaled[:, 0], line, height, interpolation)
    pixels = padded.to(device).float().flatten(1, 2)  # [b, 3h, w]
    pixels = torch.cat([pixels[..., seen] @ w.to(device).mT for seen, w in across], 2)
    pixels = _rounded(pixels).view(len(images), height, 3 * side)
    pixels = torch.cat([w.to(device) @ pixels[:, seen] for seen, w in down], 1)
    pixels = _rounded(pixels).view(len(images), side, 3, side)
    return pixels.transpose(1, 2).to(torch.uint8, memory_format=torch.contiguous_format)


def _rounded(pixels: Tensor) -> Tensor:
    """Round to whole grey levels, halves up, like PIL."""
    return pixels.add_(0.5).floor_().clamp_(0, 255)


def _weights(
    length: Tensor, scaled: Tensor, output: Tensor, extent: int, interpolation: Interpolation
) -> list[tuple[slice, Tensor]]:
    """Weights of the source's pixels in the output pixels `output` [b, s] when `length` [b] pixels
    become `scaled` [b]: PIL's `precompute_coeffs`, in its precision.

    They are zero except for a band along the diagonal, so they are returned in parts: the source's
    pixels that a part sees, and its weights [b, part of s, pixels seen].
    """
    scale = (length.double() / scaled)[:, None]
    stretch = scale.clamp(min=1)  # a filter covers at least its radius in source pixels
    radius = _RADIUS[interpolation] * stretch
    centre = (output + 0.5) * scale
    first = (centre - radius + 0.5).trunc().clamp(min=0)
    last = torch.minimum((centre + radius + 0.5).trunc(), length.double()[:, None]).clamp(min=0)
    taps = first[..., None] + torch.arange(2 * math.ceil(float(radius.max())) + 1)  # [b, s, k]
    weights = _filter((taps - centre[..., None] + 0.5) / stretch[..., None], interpolation)
    weights = weights.masked_fill(taps >= last[..., None], 0)
    weights = (weights / weights.sum(-1, keepdim=True)).float()
    outside = (output < 0) | (output >= scaled[:, None])  # black
    weights = weights.masked_fill(outside[..., None], 0)
    table = torch.zeros(*output.shape, extent)
    table.scatter_add_(2, taps.long().clamp(max=extent - 1), weights)
    parts = []
    for start in range(0, output.shape[1], _BAND):
        rows = slice(start, start + _BAND)
        seen = slice(int(first[:, rows].min()), int(last[:, rows].max()))
        parts.append((seen, table[:, rows, seen]))
    return parts


def _filter(x: Tensor, interpolation: Interpolation) -> Tensor:
    """PIL's filters: a triangle, and Keys' cubic with a = -1/2."""
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
