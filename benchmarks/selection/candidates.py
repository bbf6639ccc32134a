"""The rules that were compared, those of the product among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from search.selection.rules import (
    Evidence,
    Mixture,
    Rule,
    best,
    ensemble,
    gain,
    greedy,
    guarded,
    over_zero_shot,
    row_weights,
    with_share,
)

NO_GUARD = -1e9
"""Standard errors that every pool exceeds."""


def today(evidence: Evidence) -> Mixture:
    """The trial with the highest accuracy, ties by likelihood: the only rule until 2026-11."""
    trials = [k for k in range(len(evidence.log_probs)) if k != evidence.zero_shot]
    right = evidence.log_probs.argmax(dim=-1) == evidence.labels
    accuracy = right.double() @ row_weights(evidence.groups)
    chosen = max(trials, key=lambda k: (float(accuracy[k]), float(evidence.likelihoods[k])))
    return _pool(evidence, _equal(evidence, [chosen]))


def most_accurate(evidence: Evidence) -> Mixture:
    """The member with the highest accuracy; of equals, the one with the highest likelihood."""
    right = evidence.log_probs.argmax(dim=-1) == evidence.labels
    accuracy = right.double() @ row_weights(evidence.groups)
    tied = torch.where(accuracy == accuracy.max(), evidence.likelihoods, -1.0)
    return _pool(evidence, _equal(evidence, [int(tied.argmax())]))


def near_zero_shot(evidence: Evidence) -> Mixture:
    """The trial nearest to the zero-shot model, by the divergence of their probabilities, among
    those within one standard error of the most likely."""
    top = evidence.ranked[0]
    texts = evidence.log_probs[evidence.zero_shot]
    distance = (texts.exp() * (texts - evidence.scaled)).sum(dim=-1).mean(dim=-1)
    near = []
    for member in evidence.ranked:
        mean, error = gain(evidence.scores[top] - evidence.scores[member], evidence.groups)
        near += [member] if mean <= error and member != evidence.zero_shot else []
    near = near or [top]
    return _pool(evidence, _equal(evidence, [min(near, key=lambda k: float(distance[k]))]))


def mean_of(evidence: Evidence, size: int, errors: float = NO_GUARD) -> Mixture:
    """The mean of the most likely trials."""
    trials = [k for k in evidence.ranked if k != evidence.zero_shot]
    return guarded(evidence, _equal(evidence, trials[:size]), errors)


def softmax_weights(evidence: Evidence, sharpness: float) -> Mixture:
    """All members, weighted by their likelihood of all images to the power `sharpness`."""
    images = len(evidence.groups.unique())
    return _pool(evidence, (sharpness * images * evidence.likelihoods.log()).softmax(dim=0))


def bagged(evidence: Evidence, bags: int = 5) -> Mixture:
    """The mean of greedy selections, each from a random half of the trials."""
    rng = torch.Generator().manual_seed(0)
    total = torch.zeros(len(evidence.log_probs), dtype=torch.float64)
    for _ in range(bags):
        chosen = torch.rand(len(total), generator=rng) < 0.5
        chosen[evidence.zero_shot] = True
        index = chosen.nonzero().flatten()
        part = take(evidence, index.tolist())
        total[index] += greedy(part, start=1, steps=10) / bags
    return _pool(evidence, total)


def stacked(
    evidence: Evidence, strength: float, zero_shot: float = 0.0, paper: float = 0.0
) -> Mixture:
    """Coefficients, not negative, that minimise the cross entropy of the pool plus
    `strength` / images times 10 |w - prior|^2. The prior has the mean of the five most likely
    trials, and shares for the zero-shot model and the paper's setting."""
    trials = [k for k in evidence.ranked if k != evidence.zero_shot]
    prior = (1 - zero_shot - paper) * _equal(evidence, trials[:5])
    prior[evidence.zero_shot] += zero_shot
    prior[evidence.paper or 0] += paper
    index = torch.tensor(sorted({*trials[:12], evidence.zero_shot, evidence.paper or 0}))
    rows = row_weights(evidence.groups)
    flat = evidence.scaled[index].permute(1, 2, 0).contiguous()  # [n, c, m]
    true = evidence.scores[index] @ rows
    start, force = prior[index], 20 * strength / len(evidence.groups.unique())

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.as_tensor(point)
        logits = flat @ w.float()
        value = logits.logsumexp(dim=-1).double() @ rows - true @ w
        probs = logits.softmax(dim=-1) * rows.float()[:, None]
        slope = torch.einsum("nc,ncm->m", probs, flat).double() - true + force * (w - start)
        return float(value + force / 2 * (w - start).square().sum()), slope.numpy()

    bounds = [(0, None)] * len(index)
    found = minimize(loss, start.numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
    shares = torch.zeros_like(prior)
    shares[index] = torch.as_tensor(found.x)
    return _pool(evidence, shares)


@dataclass(frozen=True)
class Constants:
    """Those of `search.selection.rules.ensemble`."""

    start: int = 3
    """Best members to start from."""
    zero_shot: float = 0.2
    """Share of the zero-shot model."""
    paper: float = 0.0
    """Share of the paper's setting."""
    errors: float = 0.5
    """Standard errors by which the pool must exceed the zero-shot model."""

    def __str__(self) -> str:
        guard = "no guard" if self.errors < 0 else f"guard {self.errors:g}"
        return (
            f"greedy from {self.start}, zero-shot {self.zero_shot:g}, paper {self.paper:g}, {guard}"
        )


GRID = tuple(
    Constants(start, zero_shot, paper, errors)
    for start in (3, 5)
    for zero_shot in (0.0, 0.1, 0.2, 0.3)
    for paper in (0.0, 0.1)
    for errors in (NO_GUARD, 0.5, 1.0)
)
"""The constants that are compared."""


def greedy_family(evidence: Evidence) -> dict[str, Mixture]:
    """The pools of all of `GRID`."""
    chosen = {start: greedy(evidence, start, steps=12) for start in {c.start for c in GRID}}
    zero_shot, found = _pool(evidence, _equal(evidence, [evidence.zero_shot])), {}
    for c in GRID:
        if c.errors == NO_GUARD:
            shares = with_share(chosen[c.start], evidence.paper or 0, c.paper)
            shares = with_share(shares, evidence.zero_shot, c.zero_shot)
            pool, mean, error = over_zero_shot(evidence, shares)
        found[str(c)] = pool if mean > c.errors * error else zero_shot
    return found


CANDIDATES: Mapping[str, Rule] = {
    "most accurate trial": today,
    "most accurate": most_accurate,
    "most likely": best,
    "nearest to zero-shot within one error": near_zero_shot,
    "mean of 3": partial(mean_of, size=3),
    "mean of 5": partial(mean_of, size=5),
    "mean of 10": partial(mean_of, size=10),
    "mean of all": partial(mean_of, size=10_000),
    "mean of 5, guard 1": partial(mean_of, size=5, errors=1.0),
    "softmax weights 0.1": partial(softmax_weights, sharpness=0.1),
    "softmax weights 1": partial(softmax_weights, sharpness=1.0),
    "greedy, bagged": bagged,
    "stacked 1": partial(stacked, strength=1.0),
    "stacked 3, zero-shot 0.2, paper 0.2": partial(stacked, strength=3.0, zero_shot=0.2, paper=0.2),
    "stacked 10, zero-shot 0.2, paper 0.2": partial(
        stacked, strength=10.0, zero_shot=0.2, paper=0.2
    ),
    "ensemble (default)": ensemble,
}
"""Single rules by name."""


def single_rules(evidence: Evidence) -> dict[str, Mixture]:
    """The pools of `CANDIDATES`."""
    return {name: rule(evidence) for name, rule in CANDIDATES.items()}


def all_rules(evidence: Evidence) -> dict[str, Mixture]:
    """Those and the pools of `GRID`."""
    return single_rules(evidence) | greedy_family(evidence)


def take(evidence: Evidence, members: list[int]) -> Evidence:
    """The evidence of some members, the zero-shot model among them; what was computed is kept."""
    index = torch.tensor(members)
    paper = evidence.paper if evidence.paper in members else None
    part = Evidence(
        evidence.log_probs[index],
        evidence.labels,
        evidence.groups,
        members.index(evidence.zero_shot),
        None if paper is None else members.index(paper),
    )
    for name in ("temperatures", "scaled", "scores"):  # cached properties
        part.__dict__[name] = getattr(evidence, name)[index]
    return part


def _equal(evidence: Evidence, members: list[int]) -> Tensor:
    shares = torch.zeros(len(evidence.log_probs), dtype=torch.float64)
    shares[members] = 1 / len(members)
    return shares


def _pool(evidence: Evidence, shares: Tensor) -> Mixture:
    return Mixture(tuple((shares * evidence.temperatures).tolist()))
