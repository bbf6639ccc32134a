"""Validation of trained models: on which images, and how good they are.

Notation: n images, c classes, k models, z logits [n, c], y labels [n].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.core.protocols import Validation
from trainables.data.base import image_keys
from trainables.data.few_shot import FewShot
from trainables.encoded_task import EncodedTask
from trainables.methods.tensor_method import mean_cross_entropy
from trainables.trial import Episode
from trainables.view import View, ViewRows

_OCTAVES = 4.0  # largest |log2| of an inverse temperature
_BISECTIONS = 12
_FITTED = 1 << 20  # logits that a temperature is fitted to, at most


def validation_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy (a fraction), mean cross entropy, and likelihood: the geometric mean of the
    probability of the true class at the best temperature, in [0, 1]."""
    return stacked_validation_metrics(logits[None], labels[None])[0]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows [n, c] whose largest logit is at the label [n]."""
    return float((logits.argmax(-1) == labels).double().mean())


@torch.no_grad()
def stacked_validation_metrics(logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Return `validation_metrics` of each of k models, from logits [k, n, c] and labels [k, n]."""
    columns = {
        "val/accuracy": (logits.argmax(-1) == labels).double().mean(-1),
        "val/loss": mean_cross_entropy(logits, labels),
    }
    sharpness = _fit_sharpness(logits, labels).to(logits.dtype)
    likelihoods = mean_cross_entropy(sharpness[:, None, None] * logits, labels).neg().double().exp()
    columns["val/likelihood"] = likelihoods
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def fit_sharpness(logits: Tensor, labels: Tensor) -> float:
    """Return the inverse temperature s in [1/16, 16] that minimises the mean cross entropy of s z,
    for logits [n, c] and labels [n]."""
    return float(_fit_sharpness(logits[None], labels[None]))


@torch.no_grad()
def _fit_sharpness(logits: Tensor, labels: Tensor) -> Tensor:
    """Return s of each of k models, [k], from logits [k, n, c] and labels [k, n].

    The slope, sum(sum_c p_c z_c - z_y) with p = softmax(s z), rises with s: bisection in log s.
    """
    stride = max(1, logits[0].numel() // _FITTED)
    z, y = logits[:, ::stride].double(), labels[:, ::stride]
    true = z.gather(-1, y[..., None]).sum((-2, -1))
    octaves, half = z.new_zeros(len(z)), _OCTAVES
    for _ in range(_BISECTIONS):
        half /= 2
        slope = (z.mul(octaves.exp2()[:, None, None]).softmax(-1) * z).sum((-2, -1))
        octaves += torch.where(slope > true, -half, half)
    return octaves.exp2()


MOST_FOLDS = 4
"""Largest number of folds."""


def fold_rows(labels: Tensor, shots: int) -> list[Tensor]:
    """Return the rows of each fold of a draw, stratified over the labels [n]: the images of each
    class go to the folds in turns, in their order. There are four folds, or as many as a class has
    images, or `shots`, at most."""
    places = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        places[members] = torch.arange(len(members), device=labels.device)
    count = min(shots, MOST_FOLDS, int(labels.bincount().max()))
    return [(places % count == fold).nonzero().flatten().cpu() for fold in range(count)]


@dataclass(frozen=True)
class Pool:
    """The images that the models of one episode are validated on, with `pooled` validation."""

    view: View
    """The images."""
    keys: tuple[str, ...]
    """Their keys, see `image_keys`."""


def pool_of(encoded: EncodedTask, episode: Episode, episodes: Sequence[Episode]) -> Pool:
    """All labelled images of `episodes` with the data set and shots of `episode`, each once and
    without its own training images. Raises `DataError`.

    With one draw, these are its validation images. Equal images are known by name or content.
    """
    key = (episode, *episodes)
    if key not in encoded.pools:
        encoded.pools[key] = _pool_of(encoded, episode, episodes)
    found: Pool = encoded.pools[key]
    return found


def _pool_of(encoded: EncodedTask, episode: Episode, episodes: Sequence[Episode]) -> Pool:
    views: list[View] = []
    rows: dict[str, int] = {}
    for other in episodes:
        if (other.dataset, other.shots) != (episode.dataset, episode.shots):
            continue
        drawn = _draw(encoded, other)
        for split, view in zip((drawn.train, drawn.val), encoded.views(other), strict=True):
            for row, key in enumerate(image_keys(split), start=sum(map(len, views))):
                rows.setdefault(key, row)
            views.append(view)
    own = set(image_keys(_draw(encoded, episode).train))
    kept = {key: row for key, row in rows.items() if key not in own}
    return Pool(ViewRows(views, torch.tensor(list(kept.values()))), tuple(kept))


def image_numbers(
    encoded: EncodedTask, episodes: Sequence[Episode], validation: Validation
) -> list[Tensor]:
    """For each episode, a number per image that its models are validated on, int64 [n]; equal for
    equal images of a data set."""
    numbers: dict[tuple[str, str], int] = {}
    found = []
    for episode in episodes:
        drawn = _draw(encoded, episode)
        match validation:
            case "pooled":
                keys: Sequence[str] = pool_of(encoded, episode, episodes).keys
            case "folds":
                own = image_keys(drawn.train)
                keys = [own[row] for row in torch.cat(fold_rows(drawn.train.labels, episode.shots))]
            case "held-out":
                keys = image_keys(drawn.val)
        named = [(episode.dataset, key) for key in keys]
        found.append(torch.tensor([numbers.setdefault(key, len(numbers)) for key in named]))
    return found


def _draw(encoded: EncodedTask, episode: Episode) -> FewShot:
    return encoded.source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
