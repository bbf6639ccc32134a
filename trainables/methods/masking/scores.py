"""Scores on frozen weights, and the binary masks that they define.

Notation: W a frozen weight, M its scores, B = [M > threshold] its mask. M has one element per
element of W, or per row or column, and is then broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.methods.base import MethodError
from trainables.methods.masking.layers import layer_of

Granularity = Literal["element", "filter", "channel"]
"""What one score masks: an element of W; a row, which computes one output (a filter); or a column,
which reads one input (a channel). Attention's joint projection [3 d, d] has 3 d rows, for queries,
keys and values, and d columns, which all three share. A depthwise convolution has one column."""


class MaskScores(nn.Module):
    """The scores of some weights of a frozen tower."""

    active: Tensor

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        init: float,
        threshold: float,
        granularity: Granularity = "element",
    ) -> None:
        """`weights`: name -> W, with two dimensions or more. Every score starts at `init`."""
        super().__init__()
        self.weights = dict(weights)
        self._init, self._threshold = init, threshold
        self._scores = nn.ParameterDict(
            {
                _key(name): nn.Parameter(w.new_full(_shape(w, granularity), init))
                for name, w in self.weights.items()
            }
        )
        # Which tensors are trained: all, until `choose`. A buffer, so that the choice is saved.
        self.register_buffer("active", torch.ones(len(self.weights), dtype=torch.bool))

    def trainable(self) -> dict[str, nn.Parameter]:
        """M of every active tensor, by the name of the weight it masks."""
        names = zip(self.weights, self.active.tolist(), strict=True)
        return {name: self._scores[_key(name)] for name, active in names if active}

    def masks(self) -> dict[str, Tensor]:
        """B of every active tensor: bool, with the shape of M, True = kept."""
        return {n: m.detach() > self._threshold for n, m in self.trainable().items()}

    def effective(self) -> dict[str, Tensor]:
        """W B of every active tensor."""
        return {name: self.weights[name] * mask for name, mask in self.masks().items()}

    def gradient(self, name: str, of_effective: Tensor) -> Tensor:
        """dL/d(W B) -> dL/dB, which the straight-through estimator uses as dL/dM.

        W dL/d(W B), summed over the elements that share a score. Overwrites `of_effective`.
        """
        grad = of_effective.mul_(self.weights[name])
        return grad.sum_to_size(self._scores[_key(name)].shape)

    def choose(self, totals: Tensor) -> None:
        """Keeps active the layers whose scores have a positive mean gradient (R-DMT).

        `totals` [tensors]: each tensor's gradient, summed over its scores. If no layer qualifies,
        the one with the largest mean is kept, so that there is something to train: our choice.
        """
        layers = [layer_of(name, weight) for name, weight in self.weights.items()]
        sizes = [self._scores[_key(name)].numel() for name in self.weights]
        means = {
            layer: sum(float(t) for t, other in zip(totals, layers, strict=True) if other == layer)
            / sum(size for size, other in zip(sizes, layers, strict=True) if other == layer)
            for layer in layers
        }
        chosen = {layer for layer, mean in means.items() if mean > 0}
        chosen = chosen or {max(means, key=lambda layer: means[layer])}
        self.active.copy_(torch.tensor([layer in chosen for layer in layers]))

    def progress(self) -> dict[str, float]:
        """Number of bits that are 0; the share of the masked weights (not of the whole tower) that
        they drop; number of masked tensors."""
        flipped = dropped = total = 0
        masks = self.masks()
        for name, mask in masks.items():
            zeros, elements = mask.numel() - int(mask.count_nonzero()), self.weights[name].numel()
            flipped += zeros
            dropped += zeros * (elements // mask.numel())
            total += elements
        return {
            "mask/flipped": float(flipped),
            "mask/sparsity": dropped / total,
            "mask/tensors": float(len(masks)),
        }

    def change(self) -> dict[str, float]:
        """Mean |M - init| of every active tensor: the distance its scores have moved.

        Rounded to six digits, so that a device's order of additions does not matter.
        """
        means = {
            n: (m.detach() - self._init).abs().double().mean() for n, m in self.trainable().items()
        }
        return {name: float(f"{mean.item():.6g}") for name, mean in means.items()}

    @torch.no_grad()
    def load(self, masks: Mapping[str, Tensor], any_subset: bool = False) -> None:
        """Sets scores to init for bits that are 1, and to init mirrored at the threshold for bits
        that are 0. With `any_subset`, missing tensors become inactive.

        Raises `MethodError` if names or shapes do not match.
        """
        shapes = {name: tuple(self._scores[_key(name)].shape) for name in self.weights}
        if any_subset:
            shapes = {name: shape for name, shape in shapes.items() if name in masks}
        found = {name: tuple(mask.shape) for name, mask in masks.items()}
        if found != shapes or not masks:
            raise MethodError(
                "the masks must match the layers and the granularity of the configuration, but "
                "these tensors are missing, unexpected or of another shape: "
                f"{_difference(found, shapes)}; load them with the configuration they were "
                "trained with"
            )
        low = 2 * self._threshold - self._init
        for name in self.weights:
            score = self._scores[_key(name)].fill_(self._init)
            if name in masks:
                score.masked_fill_(~masks[name].to(score.device), low)
        self.active.copy_(torch.tensor([name in masks for name in self.weights]))


def _shape(weight: Tensor, granularity: Granularity) -> tuple[int, ...]:
    if granularity == "element":
        return tuple(weight.shape)
    kept = 0 if granularity == "filter" else 1
    return tuple(side if i == kept else 1 for i, side in enumerate(weight.shape))


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's key must not contain a dot


def _difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    names = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
