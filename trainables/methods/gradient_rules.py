"""Rules that merge two gradients of the same tensor: that of the task and that of the teacher.

Notation: a = dL_ce/dM (task), b = dL_kl/dM (L_kl keeps the student near the teacher), l the leak of
a, k the leak of b, U uniform on [0, 1) for every element. All tensors have the same shape.

A leak is R-AMT's: the share that is removed from a dropped gradient. 1 drops an element, 0 keeps
it. (Chen et al. define the leak as the share that is kept.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

RuleName = Literal["none", "sum", "gradient-dropout", "agree", "sign", "prograd"]

Draw = Callable[[], Tensor]
"""Draws another tensor of uniform numbers of the gradients' shape."""


@dataclass(frozen=True)
class Dropping:
    """Constants of the rules that drop at random."""

    leak: float = 1.0
    """l in [0, 1]."""
    leak_kl: float = 1.0
    """k in [0, 1], for `sign` only: `gradient-dropout` never lets b through."""
    eps: float = 0.0
    """Added to the purity's denominator: 1e-8 in R-AMT's released code."""


class Merge(Protocol):
    """How a rule merges the gradients of one tensor."""

    def __call__(self, a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
        """The gradient for the optimiser; `a` and `b` may be overwritten."""


@dataclass(frozen=True)
class GradientRule:
    """A way to merge two gradients."""

    merge: Merge
    """The rule itself."""
    reads_teacher: bool = True
    """Whether the result depends on b."""


def purity(first: Tensor, second: Tensor, eps: float = 0.0) -> Tensor:
    """P = (1 + sgn(a) (a + b) / (|a| + |b| + eps)) / 2 in [0, 1] (R-AMT's gradient purity).

    With eps = 0 it equals 1 if a b > 0, else |a| / (|a| + |b|). If both gradients vanish, they
    count as agreeing: P = 1.
    """
    ratio = (first + second) / (first.abs() + second.abs() + eps)
    return torch.nan_to_num_(ratio.mul_(first.sign()).add_(1).div_(2), nan=1.0)


def sign_purity(first: Tensor, second: Tensor, eps: float = 0.0) -> Tensor:
    """P = (1 + (a + b) / (|a| + |b| + eps)) / 2 in [0, 1]: how positive both gradients are
    together (Chen et al. 2020, equation 1). If both vanish, P = 1/2."""
    ratio = (first + second) / (first.abs() + second.abs() + eps)
    return torch.nan_to_num_(ratio.add_(1).div_(2), nan=0.5)


def keep(first: Tensor, second: Tensor, uniform: Tensor, eps: float = 0.0) -> Tensor:
    """Bool tensor [P > U]: the elements of `first` that survive R-AMT's gradient dropout."""
    return purity(first, second, eps) > uniform


def plain(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a: mask tuning without regularisation (AMT)."""
    return a


def summed(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a + b: the gradient of CE + KL with weights of 1 (R-AMT's ablation "+ KL loss")."""
    return a.add_(b)


def gradient_dropout(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """(1 - l + l [P > U]) a with R-AMT's purity P (Zheng et al. 2023, section 3.3).

    l = 0 gives a. Agreeing elements are always kept (for eps = 0), since U < 1 = P.
    """
    return a.mul_(_share(keep(a, b, draw(), dropping.eps), dropping.leak, a))


def agree(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a + b if a b > 0, else 0: AgreeGrad, the Agr-Sum of Mansilla et al. 2021 (section 3.2).

    Signs are compared instead of products, which underflow for small gradients.
    """
    same = (a.sign() == b.sign()).logical_and_(a != 0)
    return a.add_(b).mul_(same)


def sign(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """(1 - l + l K_a) a + (1 - k + k K_b) b: GradSign, Chen et al. 2020, algorithm 1.

    K_g = [P > U] if g > 0, [P < U] if g < 0, with the same U for both: either all positive or all
    negative parts of an element are kept. l = k = 1 is the pure form (the paper's leaks of 0);
    l = k = 0 gives a + b.
    """
    positive, uniform = sign_purity(a, b, dropping.eps), draw()
    above, below = positive > uniform, positive < uniform
    for g, leak in ((a, dropping.leak), (b, dropping.leak_kl)):
        g.mul_(_share(torch.where(g > 0, above, below), leak, g))
    return a.add_(b)


def prograd(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a - (<a, b> / ||b||^2) b if <a, b> < 0, else a, for the whole tensor: ProGrad (Zhu et al.
    2023, equation 5 with lambda = 1)."""
    return a.sub_(opposed(a, b))


def opposed(a: Tensor, b: Tensor) -> Tensor:
    """(<a, b> / ||b||^2) b if <a, b> < 0, else 0: the component of a that points against b.

    Computed from b / max |b|, since squares of small gradients underflow, and without a branch,
    which would wait for the device. For b = 0 the result is 0.
    """
    size = b.abs().amax()
    direction = b / torch.where(size > 0, size, 1.0)
    against = (a * direction).sum().clamp_max(0.0)
    # The squares sum to 1 or more, except for b = 0.
    return direction * (against / direction.square().sum().clamp_min(1.0))


def _share(kept: Tensor, leak: float, like: Tensor) -> Tensor:
    """1 for kept elements, else 1 - leak, in the type of `like`."""
    return kept.to(like.dtype).mul_(leak).add_(1 - leak)


GRADIENT_RULES: dict[RuleName, GradientRule] = {
    "none": GradientRule(plain, reads_teacher=False),
    "sum": GradientRule(summed),
    "gradient-dropout": GradientRule(gradient_dropout),
    "agree": GradientRule(agree),
    "sign": GradientRule(sign),
    "prograd": GradientRule(prograd),
}
"""Name in configurations -> rule."""
