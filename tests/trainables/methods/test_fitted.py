"""Fitted classifiers against independent statements: scikit-learn, Bayes' rule, plain autograd."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from trainables.load_backbone import load_backbone
from trainables.methods.base import BuildContext, ClassTexts, Schedule, Support
from trainables.methods.classifiers import FittedClassifier, all_views, class_means
from trainables.methods.gda import Gda, GdaConfig, shrunk_precision
from trainables.methods.linear_probe import LinearProbe, LinearProbeConfig
from trainables.methods.lp_plus_plus import LpPlusPlus, LpPlusPlusConfig, step_sizes

CLASSES, SIDE, SHOTS = 4, 12, 8


def task(views: int = 1) -> tuple[BuildContext, Support]:
    """Noisy points around four centres, of which the texts are blurred copies."""
    rng = torch.Generator().manual_seed(3)
    centres = torch.randn(CLASSES, SIDE, generator=rng)
    labels = torch.arange(CLASSES).repeat(SHOTS)
    points = [centres[labels] + torch.randn(len(labels), SIDE, generator=rng) for _ in range(views)]
    texts = ClassTexts(centres + torch.randn(CLASSES, SIDE, generator=rng))
    context = BuildContext(load_backbone("tiny"), texts, Schedule(()), len(labels))
    return context, Support(labels, views, points.__getitem__, lambda: iter(()))


def fitted(method: type[FittedClassifier], config: Any, views: int = 1) -> FittedClassifier:
    context, support = task(views)
    found = method.build(config, context)
    found.prepare(support)
    return found


def unit_points() -> tuple[Tensor, Tensor, Tensor]:
    context, support = task()
    features = functional.normalize(support.features(0), dim=-1)
    return features, support.labels, functional.normalize(context.classes.features, dim=-1)


@pytest.mark.parametrize("inverse_penalty", [0.1, 1.0, 100.0])
def test_the_linear_probe_is_scikit_learns(inverse_penalty: float) -> None:
    features, labels, _ = unit_points()
    theirs = LogisticRegression(C=inverse_penalty, max_iter=5000, tol=1e-8)
    theirs.fit(features.double().numpy(), labels.numpy())
    ours = fitted(LinearProbe, LinearProbeConfig(inverse_penalty=inverse_penalty))
    scale = float(np.abs(theirs.coef_).max())
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=5e-3 * scale)
    centred = ours.bias - ours.bias.mean()  # a constant more changes no probability
    wanted = theirs.intercept_ - theirs.intercept_.mean()
    np.testing.assert_allclose(centred.numpy(), wanted, atol=5e-3 * scale)


def test_a_view_twice_is_no_sample_more() -> None:
    context, support = task()
    twice = replace(support, views=2, features=lambda _: support.features(0))
    ours = LinearProbe.build(LinearProbeConfig(inverse_penalty=1.0), context)
    ours.prepare(twice)
    once = fitted(LinearProbe, LinearProbeConfig(inverse_penalty=1.0))
    torch.testing.assert_close(ours.weight, once.weight, atol=1e-3, rtol=1e-3)


def test_gda_is_bayes_rule_with_a_shared_covariance() -> None:
    """scikit-learn's discriminant with the same covariance, given to it as an estimator."""
    features, labels, text = unit_points()
    rows = features.double() - class_means(features.double(), labels, CLASSES)[labels]

    class Given:
        covariance_ = torch.linalg.inv(shrunk_precision(rows)).numpy()

        def fit(self, _: Any) -> None:
            """It is known."""

    theirs = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=Given(), priors=[1 / CLASSES] * CLASSES
    )
    # Its covariance is the sum over classes of prior times estimate: the same estimate.
    theirs.fit(features.double().numpy(), labels.numpy())
    ours = fitted(Gda, GdaConfig(alpha=2.0))
    zero_shot = load_backbone("tiny").logit_scale * features @ text.T
    bayes = theirs.decision_function(features.double().numpy()) + math.log(CLASSES)
    torch.testing.assert_close(
        ours(features), zero_shot + 2 * torch.from_numpy(bayes).float(), atol=2e-2, rtol=2e-3
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 10**6), st.floats(0.05, 5))
def test_shrunk_precision_inverts_the_shrunk_covariance(
    count: int, side: int, seed: int, shrinkage: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, side, generator=rng, dtype=torch.float64)
    covariance = torch.from_numpy(np.cov(rows.numpy(), rowvar=False).reshape(side, side))
    identity = torch.eye(side, dtype=torch.float64)
    shrunk = (count - 1) * covariance + shrinkage * covariance.trace() * identity
    product = shrunk_precision(rows, shrinkage) @ shrunk / side
    torch.testing.assert_close(product, identity, atol=1e-8, rtol=0)


def test_without_any_spread_gda_is_zero_shot() -> None:
    context, _ = task()
    method = Gda.build(GdaConfig(), context)
    before = method.weight.clone()
    points = torch.randn(CLASSES, SIDE)
    labels = torch.arange(CLASSES)
    method.prepare(Support(labels, 1, lambda _: points, lambda: iter(())))
    assert torch.equal(method.weight, before)
    assert not method.bias.any()


@pytest.mark.parametrize(
    "config",
    [
        LpPlusPlusConfig(iterations=45),
        LpPlusPlusConfig(iterations=45, step=0.5, alpha_every=3, start_alpha=50.0),
        LpPlusPlusConfig(iterations=45, start="sums", inertia=0.9, offset=True, summed_slopes=True),
    ],
)
def test_lp_plus_plus_is_the_loop_of_the_paper(config: LpPlusPlusConfig) -> None:
    """The same descent by autograd and PyTorch's SGD; gradients of alpha pile up where asked."""
    features, labels, text = unit_points()
    sums = torch.stack([features[labels == k].sum(dim=0) for k in range(CLASSES)])
    w = (sums if config.start == "sums" else sums / SHOTS).requires_grad_()
    own = torch.stack([(features[labels == k] @ text[k]).mean() for k in range(CLASSES)])
    alpha = torch.full((CLASSES,), float(config.start_alpha * own.mean())).requires_grad_()
    drawn = torch.rand(CLASSES, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bias = (drawn / math.sqrt(SIDE) * config.offset).requires_grad_(config.offset)
    largest = torch.linalg.eigvalsh(features.T @ features)[-1]
    rate = float(config.step * 4 * len(features) / largest)
    alpha_rate = config.step * len(features) / (4 * (features @ text.T).square().sum(0).max())
    moved = [w, bias] if config.offset else [w]
    optimiser = torch.optim.SGD(moved, lr=rate, momentum=config.inertia)
    for step in range(1, config.iterations + 1):
        logits = features @ w.T + alpha * (features @ text.T) + bias
        optimiser.zero_grad()
        if not config.summed_slopes:
            alpha.grad = None
        functional.cross_entropy(logits, labels).backward()
        optimiser.step()
        if step % config.alpha_every == 0:
            assert alpha.grad is not None
            alpha.data -= alpha_rate * alpha.grad
    ours = fitted(LpPlusPlus, config)
    wanted = (w + alpha[:, None] * text).detach()
    torch.testing.assert_close(ours.weight, wanted, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(ours.bias, bias.detach(), atol=2e-3, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(2, 10), st.integers(0, 10**6))
def test_alphas_steps_never_climb(count: int, side: int, seed: int) -> None:
    """n / (4 max ...) is below the inverse Lipschitz constant: one step of alpha descends."""
    rng = torch.Generator().manual_seed(seed)
    features, text = torch.randn(count, side, generator=rng), torch.randn(5, side, generator=rng)
    cosines = functional.normalize(features, dim=-1) @ functional.normalize(text, dim=-1).T
    labels = torch.randint(0, 5, (count,), generator=rng)
    alpha = (10 * torch.randn(5, generator=rng)).requires_grad_()
    loss = functional.cross_entropy(alpha * cosines, labels)
    loss.backward()
    _, rate = step_sizes(functional.normalize(features, dim=-1), cosines)
    assert alpha.grad is not None
    after = functional.cross_entropy((alpha - rate * alpha.grad).detach() * cosines, labels)
    assert after <= loss + 1e-5


METHODS: list[tuple[type[FittedClassifier], Any]] = [
    (LinearProbe, LinearProbeConfig()),
    (LpPlusPlus, LpPlusPlusConfig()),
    (Gda, GdaConfig()),
]


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_other_classes_get_the_zero_shot_classifier(
    method: type[FittedClassifier], config: Any
) -> None:
    found = fitted(method, config, views=2)
    features = torch.randn(5, SIDE)
    found.set_classes(ClassTexts(features))
    z = torch.randn(3, SIDE)
    cosine = functional.cosine_similarity(z[:, None], features[None], dim=-1)
    torch.testing.assert_close(found(z), load_backbone("tiny").logit_scale * cosine)


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_it_fits_its_training_set(method: type[FittedClassifier], config: Any) -> None:
    context, support = task(views=2)
    found = method.build(config, context)
    points, labels = all_views(support)
    before = (found(points).argmax(dim=-1) == labels).float().mean()
    found.prepare(support)
    after = (found(points).argmax(dim=-1) == labels).float().mean()
    assert after > before
