"""Rules that turn validation predictions into the result of a sweep.

A rule sees what the search may see: log-probabilities of validation images, and their labels. It
returns the coefficients of a log-linear pool of trials. `docs/selection.md` has the measured
figures of these rules and of those that were tried and removed.

Notation: m members, n validation rows, c classes, w coefficients [m], t inverse temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_WIDEST = math.log(20.0)  # of |log t|


@dataclass(frozen=True)
class Evidence:
    """Validation predictions of the trials that a result may consist of.

    A row is an image as the models of one draw see it, so an image has several rows if models of
    several draws were validated on it.
    """

    log_probs: Tensor
    """float [m, n, c]: log-probabilities of each member."""
    labels: Tensor
    """int64 [n]."""
    groups: Tensor
    """int64 [n]: a number per distinct image. Rows of one image are no independent evidence."""
    zero_shot: int
    """Index of the zero-shot model among the members."""
    paper: int | None = None
    """Index of the paper's setting, if it is a member."""

    @cached_property
    def temperatures(self) -> Tensor:
        """Each member's best inverse temperature, float64 [m], see `temperatures`."""
        return temperatures(self.log_probs, self.labels)

    @cached_property
    def scaled(self) -> Tensor:
        """Log-probabilities at these temperatures, [m, n, c]."""
        t = self.temperatures.to(self.log_probs.dtype)
        return (self.log_probs * t[:, None, None]).log_softmax(dim=-1)

    @cached_property
    def scores(self) -> Tensor:
        """Those of the true classes, float64 [m, n]."""
        return _true(self.scaled, self.labels).double()

    @property
    def ranked(self) -> list[int]:
        """Members by falling likelihood."""
        return [int(k) for k in self.likelihoods.argsort(descending=True, stable=True)]

    @property
    def likelihoods(self) -> Tensor:
        """The geometric mean probability of the true class at each member's best temperature,
        float64 [m], in (0, 1]."""
        return (self.scores @ row_weights(self.groups)).exp()


@dataclass(frozen=True)
class Mixture:
    """A log-linear pool: probabilities are softmax(sum_k w_k log p_k).

    Members that are linear in the same features fold into one linear head, with the same
    coefficients for their weights and biases.
    """

    weights: tuple[float, ...]
    """w, not negative and not all 0. Their sum is the pool's inverse temperature, and does not
    change which class is the most probable."""

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the members with a share."""
        return tuple(k for k, weight in enumerate(self.weights) if weight > 0)

    def log_probs(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities [m, n, c] of all members -> of the pool [n, c]."""
        return _pool(log_probs, torch.tensor(self.weights, dtype=log_probs.dtype))


Rule = Callable[[Evidence], Mixture]
"""Chooses a result; a pure function."""


def best(evidence: Evidence) -> Mixture:
    """The member with the highest likelihood."""
    return _one(evidence, int(evidence.likelihoods.argmax()))


def ensemble(evidence: Evidence) -> Mixture:
    """Greedy selection (Caruana et al., ICML 2004) from the three best members, with a share for
    the zero-shot model; the zero-shot model alone unless that is clearly better."""
    shares = greedy(evidence, start=3, steps=12)
    return guarded(evidence, with_share(shares, evidence.zero_shot, 0.2), errors=0.5)


RULES: dict[str, Rule] = {"ensemble": ensemble, "best": best}
"""Rules by name, the default first."""


def temperatures(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Inverse temperatures t that minimise the cross entropy of each member [m, n, c], float64 [m].

    The problem is convex in t. Newton's steps on log t, which is kept within log 20 of 0.
    """
    true = _true(log_probs, labels).double().mean(dim=-1)
    values = log_probs.clamp(min=-1e4)  # finite, so that 0 times a value is 0
    low, high = torch.full_like(true, -_WIDEST), torch.full_like(true, _WIDEST)
    place = torch.zeros_like(true)
    for _ in range(12):
        t = place.exp().to(values.dtype)[:, None, None]
        probs = (values * t).softmax(dim=-1)
        mean = (probs * values).sum(dim=-1)
        spread = (probs * values.square()).sum(dim=-1) - mean.square()
        slope = mean.double().mean(dim=-1) - true  # d loss / dt
        bend = spread.double().mean(dim=-1).clamp(min=1e-12)
        low, high = torch.where(slope > 0, low, place), torch.where(slope > 0, place, high)
        step = place - slope / (bend * place.exp() + slope.abs())
        place = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return place.exp()


def greedy(evidence: Evidence, start: int, steps: int) -> Tensor:
    """Shares [m] of a pool of members at their best temperatures: the `start` best ones, then step
    by step, with replacement, the one that raises the likelihood most; the best of these pools."""
    scaled, rows = evidence.scaled, row_weights(evidence.groups)
    counts = torch.zeros(len(scaled), dtype=torch.float64)
    counts[evidence.ranked[:start]] = 1  # fewer if there are not so many
    total = torch.einsum("m,mnc->nc", counts.to(scaled.dtype), scaled)
    found, highest = counts, float(_scores(total / counts.sum(), evidence.labels) @ rows)
    for _ in range(steps):
        pools = (total + scaled) / (counts.sum() + 1)
        values = _scores(pools, evidence.labels) @ rows
        chosen = int(values.argmax())
        counts = counts.clone()
        counts[chosen] += 1
        total = total + scaled[chosen]
        if values[chosen] > highest:
            found, highest = counts, float(values[chosen])
    return found / found.sum()


def with_share(shares: Tensor, member: int, share: float) -> Tensor:
    """The shares [m] scaled down to make room for a `share` of one member."""
    found = shares * (1 - share)
    found[member] += share
    return found


def guarded(evidence: Evidence, shares: Tensor, errors: float) -> Mixture:
    """The pool with these shares [m] of members at their best temperatures, unless its mean
    log-likelihood exceeds the zero-shot model's by no more than `errors` standard errors: then the
    zero-shot model."""
    pool, mean, error = over_zero_shot(evidence, shares)
    return pool if mean > errors * error else _one(evidence, evidence.zero_shot)


def over_zero_shot(evidence: Evidence, shares: Tensor) -> tuple[Mixture, float, float]:
    """The pool with these shares [m] at its best temperature, and by how much its log-likelihood
    exceeds the zero-shot model's: mean and standard error over distinct images."""
    pool = _pool(evidence.scaled, shares)
    t = temperatures(pool[None], evidence.labels)
    difference = _scores(pool * float(t), evidence.labels) - evidence.scores[evidence.zero_shot]
    weights = shares * evidence.temperatures * t
    return Mixture(tuple(weights.tolist())), *gain(difference, evidence.groups)


def gain(differences: Tensor, groups: Tensor) -> tuple[float, float]:
    """Mean over distinct images of paired differences [n], and its standard error, which is
    infinite for a single image."""
    _, place, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, place, differences.double())
    means = sums / counts
    error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else math.inf
    return float(means.mean()), error


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of the true class, float64 [..., n], for logits [..., n, c]."""
    return _true(logits.log_softmax(dim=-1), labels).double()


def _true(values: Tensor, labels: Tensor) -> Tensor:
    """[..., n, c] -> [..., n]."""
    return values.gather(-1, labels.expand(values.shape[:-1])[..., None])[..., 0]


def row_weights(groups: Tensor) -> Tensor:
    """Weights of rows such that every distinct image has the same, float64 [n] with sum 1."""
    _, place, counts = groups.unique(return_inverse=True, return_counts=True)
    weights: Tensor = 1 / (counts[place] * len(counts)).double()
    return weights


def _pool(log_probs: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("m,mnc->nc", weights.to(log_probs.dtype), log_probs).log_softmax(dim=-1)


def _one(evidence: Evidence, member: int) -> Mixture:
    return Mixture(tuple(float(k == member) for k in range(len(evidence.log_probs))))
