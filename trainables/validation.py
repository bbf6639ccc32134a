"""Validation of trained models: on which images, and how good they are.

Notation: n images, c classes, z logits [n, c], y labels [n].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainables.data.base import image_keys
from trainables.encoded_task import EncodedTask
from trainables.trial import Episode
from trainables.view import View
from trainables.view_rows import ViewRows

_OCTAVES = 4.0  # largest |log2| of an inverse temperature
_BISECTIONS = 12
_FITTED = 1 << 20  # logits that a temperature is fitted to, at most


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows [n, c] whose largest logit is at the label [n]."""
    return float((logits.argmax(-1) == labels).double().mean())


def validation_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy (a fraction), mean cross entropy, and likelihood: the geometric mean of the
    probability of the true class at the best temperature, in [0, 1]."""
    sharpness = fit_sharpness(logits, labels)
    return {
        "val/accuracy": accuracy(logits, labels),
        "val/loss": float(functional.cross_entropy(logits, labels)),
        "val/likelihood": math.exp(-float(functional.cross_entropy(sharpness * logits, labels))),
    }


@torch.no_grad()
def fit_sharpness(logits: Tensor, labels: Tensor) -> float:
    """Return the inverse temperature s in [1/16, 16] that minimises the mean cross entropy of s z.

    The slope, mean(sum_c p_c z_c - z_y) with p = softmax(s z), rises with s: bisection in log s.
    """
    stride = max(1, logits.numel() // _FITTED)
    z, y = logits[::stride].double(), labels[::stride]
    true = z.gather(1, y[:, None]).mean()
    low, high = -_OCTAVES, _OCTAVES
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        slope = ((2**middle * z).softmax(-1) * z).sum(-1).mean() - true
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(2 ** ((low + high) / 2))


@dataclass(frozen=True)
class Pool:
    """The images that the models of one episode are validated on, with `pooled` validation."""

    view: View
    """The images."""
    images: Tensor
    """int64 [n]: a number per distinct image of the task, equal for equal images."""


def pool_of(encoded: EncodedTask, episode: Episode, episodes: Sequence[Episode]) -> Pool:
    """All labelled images of `episodes` with the data set and shots of `episode`, each once and
    without its own training images. Raises `DataError`.

    With one draw, these are its validation images. Equal images are known by name or content, see
    `image_keys`.
    """
    key = (episode, *episodes)
    if key not in encoded.pools:
        encoded.pools[key] = _pool_of(encoded, episode, episodes)
    found: Pool = encoded.pools[key]
    return found


def _pool_of(encoded: EncodedTask, episode: Episode, episodes: Sequence[Episode]) -> Pool:
    numbers: dict[tuple[str, str], int] = {}
    views: list[View] = []
    rows: dict[str, tuple[int, int]] = {}
    start, own = 0, set[str]()
    for other in episodes:
        drawn = encoded.source.draw(other.dataset, other.shots, other.seed, other.half)
        for split, view in zip((drawn.train, drawn.val), encoded.views(other), strict=True):
            keys = image_keys(split)
            for key in keys:
                numbers.setdefault((other.dataset, key), len(numbers))
            if (other.dataset, other.shots) == (episode.dataset, episode.shots):
                views.append(view)
                for row, key in enumerate(keys, start=start):
                    rows.setdefault(key, (row, numbers[other.dataset, key]))
                start += len(keys)
            if other == episode and split is drawn.train:
                own = set(keys)
    kept = torch.tensor([place for key, place in rows.items() if key not in own])
    return Pool(ViewRows(views, kept[:, 0]), kept[:, 1])
