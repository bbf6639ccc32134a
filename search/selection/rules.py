"""Rules that turn validation predictions into the result of a sweep.

A rule sees what the search may see: log-probabilities of validation images, and their labels. It
returns the coefficients of a log-linear pool of trials. `docs/selection.md` has the measured
figures of these rules and of those that were tried and removed.

Notation: m members, n validation rows, c classes, w coefficients [m], t inverse temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST = 20.0  # of t, and the inverse of its smallest value


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
    return _one(evidence, int(likelihoods(evidence).argmax()))


def most_accurate(evidence: Evidence) -> Mixture:
    """The member with the highest accuracy; of equals, the one with the highest likelihood."""
    right = evidence.log_probs.argmax(dim=-1) == evidence.labels
    accuracy = right.double().mean(dim=-1)
    tied = torch.where(accuracy == accuracy.max(), likelihoods(evidence), -1.0)
    return _one(evidence, int(tied.argmax()))


def ensemble(evidence: Evidence, size: int = 5) -> Mixture:
    """The mean of the `size` members of the highest likelihood, each at its best temperature; the
    zero-shot model unless that is better by more than one standard error."""
    t = temperatures(evidence.log_probs, evidence.labels)
    chosen = likelihoods(evidence).argsort(descending=True, stable=True)[:size]
    weights = torch.zeros_like(t)
    weights[chosen] = t[chosen] / len(chosen)
    return _guarded(evidence, weights)


RULES: dict[str, Rule] = {"ensemble": ensemble, "best": best}
"""Rules by name, the default first."""


def likelihoods(evidence: Evidence) -> Tensor:
    """The geometric mean probability of the true class at each member's best temperature, in
    (0, 1], float64 [m]."""
    t = temperatures(evidence.log_probs, evidence.labels)
    return _scores(evidence.log_probs * t[:, None, None], evidence.labels).mean(dim=-1).exp()


def temperatures(log_probs: Tensor, labels: Tensor) -> Tensor:
    """The inverse temperatures that minimise the cross entropy of each member [m, n, c], float64
    [m], within 1/20 and 20 (a member without errors has none). The problem is convex in t."""
    values = log_probs.double()
    true = _true(values, labels).mean(dim=-1)
    low = torch.full_like(true, -torch.tensor(_LARGEST).log().item())
    high = -low
    for _ in range(20):
        middle = (low + high) / 2
        probs = (values * middle.exp()[:, None, None]).softmax(dim=-1)
        expected = (probs * values.clamp(min=-1e4)).sum(dim=-1).mean(dim=-1)
        rising = expected > true  # d loss / dt
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return ((low + high) / 2).exp()


def _guarded(evidence: Evidence, weights: Tensor) -> Mixture:
    """The pool, or the zero-shot model unless the pool's log-likelihood exceeds it by more than
    one standard error over distinct images."""
    pools = torch.stack(
        [
            _pool(evidence.log_probs.double(), weights),
            evidence.log_probs[evidence.zero_shot].double(),
        ]
    )
    t = temperatures(pools, evidence.labels)
    found, simple = _scores(pools * t[:, None, None], evidence.labels)
    mean, error = gain(found - simple, evidence.groups)
    if mean <= error:
        return _one(evidence, evidence.zero_shot)
    return Mixture(tuple((weights * t[0]).tolist()))


def gain(differences: Tensor, groups: Tensor) -> tuple[float, float]:
    """Mean of paired differences [n] and its standard error over distinct images, which is
    infinite for a single one."""
    _, place = groups.unique(return_inverse=True)
    count = place.bincount().double()
    means = torch.zeros_like(count).index_add_(0, place, differences.double()) / count
    if len(count) < 2:
        return float(means.mean()), float("inf")
    return float(means.mean()), float(means.std() / len(count) ** 0.5)


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of the true class, float64 [..., n], for logits [..., n, c]."""
    return _true(logits.double().log_softmax(dim=-1), labels)


def _true(values: Tensor, labels: Tensor) -> Tensor:
    """[..., n, c] -> [..., n]."""
    return values.gather(-1, labels.expand(values.shape[:-1])[..., None])[..., 0]


def _pool(log_probs: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("m,mnc->nc", weights.to(log_probs.dtype), log_probs).log_softmax(dim=-1)


def _one(evidence: Evidence, member: int) -> Mixture:
    return Mixture(tuple(float(k == member) for k in range(len(evidence.log_probs))))
