"""Some images of several views, as a view.

Notation: n images, b of them, d feature dimension, s image side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.view import View


class ViewRows(View):
    """Rows of the concatenation of views of one backbone."""

    def __init__(self, views: Sequence[View], rows: Tensor) -> None:
        """`rows`: int64 [n], positions in the concatenation of `views`, at least one of each."""
        self._parts, self._rows = tuple(views), rows
        self._known: dict[tuple[int, float], Tensor] = {}
        self.backbone = views[0].backbone
        labels = torch.cat([view.labels for view in views])
        self.labels = labels[rows.to(labels.device)]

    def with_backbone(self, backbone: Backbone, cache: bool = False) -> View:
        if backbone.sees_as(self.backbone):
            return self
        return ViewRows([view.with_backbone(backbone, cache) for view in self._parts], self._rows)

    @property
    def has_pixels(self) -> bool:
        return self._parts[0].has_pixels

    def features(self, number: int = 0, crop_scale: float = 1.0) -> Tensor:
        key = (number, crop_scale)
        if key not in self._known:
            whole = torch.cat([view.features(number, crop_scale) for view in self._parts])
            self._known[key] = whole[self._rows.to(whole.device)]
        return self._known[key]

    def images(self, index: Tensor) -> Tensor:
        return torch.cat([view.images(row) for view, row in self._located(index)])

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from map(self.images, torch.arange(len(self)).split(size))

    def crops(self, index: Tensor, crop_scale: float, rng: torch.Generator) -> Tensor:
        if len(self._parts) == 1:
            return self._parts[0].crops(self._rows[index.cpu()], crop_scale, rng)
        return torch.cat([v.crops(row, crop_scale, rng) for v, row in self._located(index)])

    def materialize(self, input_kind: Literal["features", "images"]) -> None:
        for view in self._parts:
            view.materialize(input_kind)

    def _located(self, index: Tensor) -> Iterator[tuple[View, Tensor]]:
        """The views of some rows and their positions in them; neighbours of one view together."""
        rows = self._rows[index.cpu()]
        ends = torch.tensor([len(view) for view in self._parts]).cumsum(0)
        owners = torch.bucketize(rows, ends, right=True)
        counts = owners.unique_consecutive(return_counts=True)[1].tolist()
        for part, owner in zip(rows.split(counts), owners.split(counts), strict=True):
            number = int(owner[0])
            yield self._parts[number], part - (ends[number] - len(self._parts[number]))
