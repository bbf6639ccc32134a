"""Selection rules on generated predictions."""

from __future__ import annotations

import pytest
import torch

from search.selection.rules import (
    RULES,
    Evidence,
    Mixture,
    best,
    ensemble,
    gain,
    greedy,
    temperatures,
)

IMAGES, CLASSES = 60, 4


def evidence(*strengths: float, images: int = IMAGES, seed: int = 0) -> Evidence:
    """Members whose logits are the truth times a strength, plus independent noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    truth = torch.nn.functional.one_hot(labels, CLASSES).float()
    logits = torch.stack(
        [s * truth + torch.randn(images, CLASSES, generator=rng) for s in strengths]
    )
    return Evidence(logits.log_softmax(-1), labels, torch.arange(images), zero_shot=0, paper=1)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_returns_a_pool_that_can_classify(name: str) -> None:
    given = evidence(1.0, 1.2, 2.0, 0.5)
    found = RULES[name](given)
    assert len(found.weights) == 4
    assert min(found.weights) >= 0
    assert found.members
    assert found.log_probs(given.log_probs).exp().sum(-1) == pytest.approx(torch.ones(IMAGES))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_not_depend_on_the_order_of_images(name: str) -> None:
    given = evidence(1.0, 1.5, 2.0)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    other = Evidence(given.log_probs[:, order], given.labels[order], given.groups[order], 0, 1)
    assert RULES[name](other).weights == pytest.approx(RULES[name](given).weights, abs=1e-4)


def test_the_best_member_has_the_highest_likelihood_whatever_its_temperature() -> None:
    given = evidence(1.0, 1.5, 3.0)
    scaled = Evidence((given.log_probs * 7).log_softmax(-1), given.labels, given.groups, 0, 1)
    assert best(given).members == best(scaled).members == (2,)
    assert scaled.likelihoods == pytest.approx(given.likelihoods, rel=1e-4)


def test_an_image_that_was_classified_twice_counts_once() -> None:
    given, rows = evidence(1.0, 2.0), torch.cat([torch.arange(IMAGES), torch.arange(10)])
    twice = Evidence(given.log_probs[:, rows], given.labels[rows], given.groups[rows], 0, 1)
    once = twice.scores[:, :IMAGES].mean(1).exp()
    assert twice.likelihoods == pytest.approx(once, rel=1e-6)
    assert once != pytest.approx(twice.scores.mean(1).exp(), rel=1e-3)


def test_temperatures_undo_a_scale() -> None:
    given = evidence(2.0, 2.5)
    found = temperatures(given.log_probs, given.labels)
    assert temperatures(given.log_probs * 3, given.labels) == pytest.approx(found / 3, rel=1e-3)


def test_rows_of_one_image_are_no_independent_evidence() -> None:
    differences = torch.tensor([1.0, -0.5, 0.5, 2.0])
    once = gain(differences, torch.arange(4))
    often = gain(differences.repeat(10), torch.arange(4).repeat(10))
    assert often == pytest.approx(once)
    assert gain(differences, torch.zeros(4, dtype=torch.int64))[1] == float("inf")


def test_without_a_clear_gain_the_ensemble_is_the_zero_shot_model() -> None:
    assert ensemble(evidence(2.0, 0.1, 0.1)).members == (0,)
    assert ensemble(evidence(1.0, 4.0, 4.0)).members != (0,)


def test_the_ensemble_always_has_a_share_for_the_zero_shot_model() -> None:
    given = evidence(1.0, 3.0, 4.0)
    scale = torch.tensor(ensemble(given).weights) / given.temperatures
    assert float(scale[0] / scale.sum()) >= 0.2 - 1e-6


def test_greedy_selection_is_at_least_as_likely_as_its_start() -> None:
    given = evidence(1.0, 2.0, 2.1, 1.9, 0.3)
    (first,) = greedy(given, start=1, steps=0).nonzero().flatten().tolist()
    assert first == best(given).members[0]
    rows = torch.arange(IMAGES)

    def likelihood(steps: int) -> float:
        weights = greedy(given, start=3, steps=steps) * given.temperatures
        pool = Mixture(tuple(weights.tolist())).log_probs(given.log_probs)
        return float(pool[rows, given.labels].mean())

    assert likelihood(12) >= likelihood(0)


def test_a_pool_of_one_member_is_that_member() -> None:
    given = evidence(1.0, 2.0)
    found = Mixture((0.0, 1.0)).log_probs(given.log_probs)
    assert found == pytest.approx(given.log_probs[1], abs=1e-5)
