"""From clean masks to varied coloured pictures, in batches, on torch alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 32
"""Side of a training image in pixels."""

COLOURS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("red", (0.90, 0.10, 0.10)),
    ("green", (0.10, 0.70, 0.15)),
    ("blue", (0.15, 0.25, 0.95)),
    ("yellow", (0.95, 0.90, 0.10)),
    ("orange", (1.00, 0.55, 0.05)),
    ("purple", (0.55, 0.10, 0.75)),
    ("pink", (1.00, 0.50, 0.75)),
    ("brown", (0.50, 0.28, 0.10)),
)
"""Coloured inks: name and RGB in [0, 1]."""

INKS: tuple[str, ...] = (*(name for name, _ in COLOURS), "white", "black")
"""Names of all inks; «white» is any light grey on dark, «black» any dark grey on light."""

_GREY = 0.6  # fraction of grey pictures
_ROUND_TRIP = (8, 10, 12, 14, 16)  # pixels
_ROUND_TRIP_RATE = 0.5


def augment(masks: Tensor, hardness: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Deform, blur and colour masks.

    Args:
        masks: (b, s, s) float32 in [0, 1], 1 is ink.
        hardness: 0 (barely changed) to 1 (the full range of every change).
        generator: the only source of randomness.

    Returns:
        images, (b, 3, 32, 32) float32, normalised by mean = std = 0.5, so in [-1, 1]; and the ink
        of each as an index into `INKS`, (b,) int64.
    """
    x = masks[:, None]
    x = _thicken(x, hardness, generator)
    x = _deform(x, hardness, generator)
    x = _round_trip(x, hardness, generator)
    x = x.clamp(1e-4, 1) ** (0.4 * hardness * _normal((len(x), 1, 1, 1), generator)).exp()
    images, inks = _colour(x, generator)
    level = 0.08 * hardness * _uniform((len(x), 1, 1, 1), generator)
    images = (images + level * _normal(tuple(images.shape), generator)).clamp(0, 1)
    return (images - 0.5) / 0.5, inks


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _uniform(
    shape: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _thicken(x: Tensor, hardness: float, generator: torch.Generator) -> Tensor:
    """Erode strokes by up to .6 mask pixels a side or dilate by up to 2. (b, 1, s, s)."""
    by = hardness * _uniform((len(x), 1, 1, 1), generator, -0.6, 2.0)
    eroded = -F.max_pool2d(-x, 3, stride=1, padding=1)
    once = F.max_pool2d(x, 3, stride=1, padding=1)
    twice = F.max_pool2d(once, 3, stride=1, padding=1)
    out = x + (-by).clamp(0, 1) * (eroded - x)
    out = out + by.clamp(0, 1) * (once - x)
    return out + (by - 1).clamp(0, 1) * (twice - once)


def _deform(x: Tensor, hardness: float, generator: torch.Generator) -> Tensor:
    """Rotate (sd 12 degrees), scale, squeeze, shear, shift, bend. To (b, 1, 32, 32)."""
    b = len(x)
    n = hardness * _normal((b, 6), generator)
    angle = n[:, 0] * (12 * torch.pi / 180)
    scale = 1.3 * (0.15 * n[:, 1]).exp()
    squeeze = (0.15 * n[:, 2]).exp()
    shear = 0.15 * n[:, 3]
    cos, sin = angle.cos(), angle.sin()
    # affine_grid wants the inverse map: from a place in the output to one in the mask.
    row_x = (
        torch.stack([cos, -sin + shear * cos, 0.08 * n[:, 4]], dim=1) / (scale / squeeze)[:, None]
    )
    row_y = (
        torch.stack([sin, cos + shear * sin, 0.08 * n[:, 5]], dim=1) / (scale * squeeze)[:, None]
    )
    grid = F.affine_grid(
        torch.stack([row_x, row_y], dim=1), [b, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
    )
    bend = 0.08 * hardness * _normal((b, 2, 4, 4), generator)
    bend = F.interpolate(bend, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True)
    return F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def _round_trip(x: Tensor, hardness: float, generator: torch.Generator) -> Tensor:
    """Send some images through 8 to 16 pixels and back. (b, 1, 32, 32)."""
    sizes = torch.tensor(_ROUND_TRIP)[
        torch.randint(len(_ROUND_TRIP), (len(x),), generator=generator)
    ]
    sizes[_uniform((len(x),), generator) >= _ROUND_TRIP_RATE * hardness] = IMAGE_SIZE
    out = x.clone()
    for size in _ROUND_TRIP:
        chosen = (sizes == size).nonzero().flatten()
        if len(chosen):
            small = F.interpolate(x[chosen], size=(size, size), mode="bilinear", antialias=True)
            back = F.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")
            out[chosen] = back.clamp(0, 1)
    return out


def _colour(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Grey in both polarities, or one of eight colours on dark or light. (b, 1, h, w)."""
    b, white, black = len(x), INKS.index("white"), INKS.index("black")
    palette = torch.tensor([rgb for _, rgb in COLOURS])
    inks = torch.randint(len(COLOURS), (b,), generator=generator)
    light = _uniform((b, 1), generator, 0.7, 1.0)
    dark = _uniform((b, 1), generator, 0.0, 0.25)
    on_dark = torch.rand(b, generator=generator) < 0.5
    ground = torch.where(on_dark[:, None], dark, light).expand(b, 3)
    coloured = (palette[inks] + 0.06 * _normal((b, 3), generator)).clamp(0, 1)
    grey = torch.rand(b, generator=generator) < _GREY
    grey_ink = torch.where(on_dark[:, None], light, dark).expand(b, 3)
    ink = torch.where(grey[:, None], grey_ink, coloured)[:, :, None, None]
    ground = ground[:, :, None, None]
    inks = torch.where(grey, torch.where(on_dark, white, black), inks)
    return ground + x * (ink - ground), inks
