"""How two gradients of the same mask are merged: that of the task, and that of the teacher.

Notation: a = dL_ce/dM, b = dL_kl/dM (L_kl keeps the student near the teacher), l the leak of a,
k that of b, U uniform on [0, 1) for every element, all of one tensor's shape.

R-AMT's leak is the share that dropping takes away: 1 drops an element altogether, 0 leaves it.
(Chen et al. count the other way round.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

RuleName = Literal["none", "sum", "gradient-dropout", "agree", "sign", "prograd"]

Draw = Callable[[], Tensor]
"""One more tensor of uniform numbers of the gradients' shape."""


@dataclass(frozen=True)
class Dropping:
    """The constants of the rules that drop at random."""

    leak: float = 1.0
    """l in [0, 1]."""
    leak_kl: float = 1.0
    """k in [0, 1], of `sign` alone: `gradient-dropout` never lets b through."""
    eps: float = 0.0
    """Added to the purity's denominator: 1e-8 in R-AMT's released code."""


class Merge(Protocol):
    """What a rule does with one tensor's gradients."""

    def __call__(self, a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
        """The gradient that the optimiser sees; `a` and `b` may be overwritten."""


@dataclass(frozen=True)
class GradientRule:
    """One way to merge."""

    merge: Merge
    """See `Merge`."""
    reads_teacher: bool = True
    """Whether b matters at all."""


def purity(first: Tensor, second: Tensor, eps: float = 0.0) -> Tensor:
    """P = (1 + sgn(a) (a + b) / (|a| + |b| + eps)) / 2 in [0, 1] (R-AMT's gradient purity).

    With eps = 0 it equals 1 where a b > 0, else |a| / (|a| + |b|). 0/0, two gradients that vanish,
    counts as agreement: P = 1.
    """
    ratio = (first + second) / (first.abs() + second.abs() + eps)
    return torch.nan_to_num_(ratio.mul_(first.sign()).add_(1).div_(2), nan=1.0)


def sign_purity(first: Tensor, second: Tensor, eps: float = 0.0) -> Tensor:
    """P = (1 + (a + b) / (|a| + |b| + eps)) / 2 in [0, 1]: how positive the two are together
    (Chen et al. 2020, equation 1). 0/0 counts as undecided: P = 1/2."""
    ratio = (first + second) / (first.abs() + second.abs() + eps)
    return torch.nan_to_num_(ratio.add_(1).div_(2), nan=0.5)


def keep(first: Tensor, second: Tensor, uniform: Tensor, eps: float = 0.0) -> Tensor:
    """Bool tensor [P > U]: which elements of `first` survive R-AMT's gradient dropout."""
    return purity(first, second, eps) > uniform


def plain(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a: mask tuning without regularisation (AMT)."""
    del b, draw, dropping
    return a


def summed(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a + b: one loss CE + KL, both of weight 1 (R-AMT, table of ablations, «+ KL loss»)."""
    del draw, dropping
    return a.add_(b)


def gradient_dropout(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """(1 - l + l [P > U]) a with R-AMT's purity P (Zheng et al. 2023, section 3.3).

    l = 0 gives a. Agreeing elements always stay (eps = 0), since U < 1 = P.
    """
    return a.mul_(_share(keep(a, b, draw(), dropping.eps), dropping.leak, a))


def agree(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a + b where a b > 0, else 0: AgreeGrad, the Agr-Sum of Mansilla et al. 2021 (section 3.2).

    Signs are compared, not products, which underflow for small gradients. Where one is 0 the
    signs differ: 0.
    """
    del draw, dropping
    same = (a.sign() == b.sign()).logical_and_(a != 0)
    return a.add_(b).mul_(same)


def sign(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """(1 - l + l K_a) a + (1 - k + k K_b) b: GradSign, Chen et al. 2020, algorithm 1.

    K_g = [P > U] where g > 0, [P < U] where g < 0, with one U for both: all positive or all
    negative parts of an element stay. l = k = 1 is the pure form (the paper's leaks of 0);
    l = k = 0 gives a + b.
    """
    positive, uniform = sign_purity(a, b, dropping.eps), draw()
    above, below = positive > uniform, positive < uniform
    for g, leak in ((a, dropping.leak), (b, dropping.leak_kl)):
        g.mul_(_share(torch.where(g > 0, above, below), leak, g))
    return a.add_(b)


def prograd(a: Tensor, b: Tensor, draw: Draw, dropping: Dropping) -> Tensor:
    """a - (<a, b> / ||b||^2) b where <a, b> < 0, else a, for the tensor as a whole: ProGrad,
    Zhu et al. 2023, equation 5 with lambda = 1."""
    del draw, dropping
    return a.sub_(opposed(a, b))


def opposed(a: Tensor, b: Tensor) -> Tensor:
    """(<a, b> / ||b||^2) b where <a, b> < 0, else 0: the part of a that points against b.

    By b / max |b|: squares of small gradients underflow. Without a branch, which would wait for
    the device; b = 0 has no direction to point against.
    """
    size = b.abs().amax()
    direction = b / torch.where(size > 0, size, 1.0)
    against = (a * direction).sum().clamp_max(0.0)
    # Not less than 1, but for b = 0, whose part is 0.
    return direction * (against / direction.square().sum().clamp_min(1.0))


def _share(kept: Tensor, leak: float, like: Tensor) -> Tensor:
    """1 where kept, else 1 - leak, in the type of `like`."""
    return kept.to(like.dtype).mul_(leak).add_(1 - leak)


GRADIENT_RULES: dict[RuleName, GradientRule] = {
    "none": GradientRule(plain, reads_teacher=False),
    "sum": GradientRule(summed),
    "gradient-dropout": GradientRule(gradient_dropout),
    "agree": GradientRule(agree),
    "sign": GradientRule(sign),
    "prograd": GradientRule(prograd),
}
"""By the name that a configuration gives."""
