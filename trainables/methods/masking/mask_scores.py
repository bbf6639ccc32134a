"""Scores on frozen weights, and the binary masks that they stand for.

Notation: W a frozen weight, M its scores, B = [M > threshold] its mask. M has one element for
every element of W, or for every row or column of it, and is then repeated along the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.methods.base import MethodError

Granularity = Literal["element", "filter", "channel"]
"""What one score stands for: an element of W; a row, which makes one output (a filter); or a
column, which reads one input (a channel). Attention's joint projection [3 d, d] has 3 d rows, of
queries, keys and values, and d columns, which the three share. A depthwise convolution has one
column."""


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
        """`weights`: name -> W, of two dimensions or more. Every score starts at `init`."""
        super().__init__()
        self.weights = dict(weights)
        self._init, self._threshold = init, threshold
        self._scores = nn.ParameterDict(
            {
                _key(name): nn.Parameter(w.new_full(_shape(w, granularity), init))
                for name, w in self.weights.items()
            }
        )
        # Which tensors are trained: all, until somebody chooses. A buffer, so that the choice is
        # part of the state.
        self.register_buffer("active", torch.ones(len(self.weights), dtype=torch.bool))

    def trainable(self) -> dict[str, nn.Parameter]:
        """M of every active tensor, by the name of the weight it masks."""
        names = zip(self.weights, self.active.tolist(), strict=True)
        return {name: self._scores[_key(name)] for name, active in names if active}

    def masks(self) -> dict[str, Tensor]:
        """B of every active tensor: bool, of the shape of M, True = kept."""
        return {n: m.detach() > self._threshold for n, m in self.trainable().items()}

    def effective(self) -> dict[str, Tensor]:
        """W B of every active tensor."""
        return {name: self.weights[name] * mask for name, mask in self.masks().items()}

    def gradient(self, name: str, of_effective: Tensor) -> Tensor:
        """dL/d(W B) -> dL/dB, which the straight-through estimator also takes for dL/dM.

        W dL/d(W B), summed over the elements that share a score. Overwrites `of_effective`.
        """
        grad = of_effective.mul_(self.weights[name])
        return grad.sum_to_size(self._scores[_key(name)].shape)

    def choose(self, totals: Tensor) -> None:
        """Train only the tensors whose total [tensors] is positive; if there is none, the one with
        the largest, so that there is something to train (R-AMT does not say)."""
        chosen = totals > 0
        self.active.copy_(chosen if chosen.any() else totals == totals.max())

    def progress(self) -> dict[str, float]:
        """Bits that are 0; the share of the masked weights (not of the whole tower) that they
        drop; the number of tensors."""
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
        """Mean |M - init| of every active tensor: how far its scores have moved, kept or not. To
        six digits, so that the order in which a device adds does not show."""
        means = {
            n: (m.detach() - self._init).abs().double().mean() for n, m in self.trainable().items()
        }
        return {name: float(f"{mean.item():.6g}") for name, mean in means.items()}

    @torch.no_grad()
    def load(self, masks: Mapping[str, Tensor], any_subset: bool = False) -> None:
        """Scores become init where a bit is 1, and the mirror image of init at the threshold where
        it is 0. With `any_subset`, tensors may be missing, and are then not active.

        Raises `MethodError` where names or shapes do not fit.
        """
        shapes = {name: tuple(self._scores[_key(name)].shape) for name in self.weights}
        if any_subset:
            shapes = {name: shape for name, shape in shapes.items() if name in masks}
        found = {name: tuple(mask.shape) for name, mask in masks.items()}
        if found != shapes or not masks:
            raise MethodError(
                "the masks must be of the layers and the granularity that the configuration "
                "names, but these tensors are missing, superfluous or of another shape: "
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
