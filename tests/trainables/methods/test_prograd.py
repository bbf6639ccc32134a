"""ProGrad: the projection, the divergence, and that a step is made of both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.trainables.methods.named_classes import context
from trainables.backbones.base import Backbone
from trainables.methods.base import Batch, TaskFacts
from trainables.methods.prograd import WORDS, ProGrad, ProGradConfig, aligned, divergence


def build(backbone: Backbone, config: ProGradConfig) -> ProGrad:
    return ProGrad.build(config, context(backbone))


def batch(seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (6,), generator=rng)
    return Batch(torch.randn(6, 128, generator=rng), labels, 9 * torch.randn(6, 3, generator=rng))


def gradients(method: ProGrad, data: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    assert data.zero_shot_logits is not None
    loss = functional.cross_entropy(method(data.inputs), data.labels)
    away = divergence(method(data.inputs), data.zero_shot_logits, temperature)
    (g,) = torch.autograd.grad(loss, method.context)
    (k,) = torch.autograd.grad(away, method.context)
    return g, k


VECTORS = st.integers(0, 10_000).map(
    lambda seed: torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).double()
)


@given(own=VECTORS, general=VECTORS, share=st.floats(0, 1), size=st.floats(1e-3, 1e3))
@settings(max_examples=200, deadline=None)
def test_projection(own: Tensor, general: Tensor, share: float, size: float) -> None:
    """It never changes agreement, never sets more against k than was, ends orthogonal at 1, and
    does not depend on how long k is."""
    found = aligned(own, general, share)
    inner = (own * general).sum()
    if inner >= 0:
        assert torch.equal(found, own)
    else:
        torch.testing.assert_close((found * general).sum(), (1 - share) * inner)
        away = found - own  # along k alone
        cosine = functional.cosine_similarity(away.flatten(), general.flatten(), dim=0)
        assert share < 1e-6 or cosine == pytest.approx(1)
    torch.testing.assert_close(aligned(own, size * general, share), found)


def test_nothing_conflicts_with_a_gradient_of_zero() -> None:
    own = torch.randn(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(aligned(own, torch.zeros(3), 1.0), own)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_has_the_value_of_kl_and_the_gradient_of_the_code(temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    model = torch.randn(5, 4, generator=rng, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    found = divergence(model, teacher, temperature)
    p, q = (side.div(temperature).softmax(dim=-1) for side in (teacher, model))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=-1).mean()
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, model)
    soft = -(p * q.log()).sum(dim=-1).mean() * temperature**2  # as released, with no entropy
    torch.testing.assert_close(gradient, torch.autograd.grad(soft, model)[0])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_step_is_made_of_both_gradients(backbone: Backbone, share: float, own: bool) -> None:
    config = ProGradConfig(context_tokens=4, projection=share, temperature=2.0, class_specific=own)
    method = build(backbone, config)
    assert method.uses_zero_shot
    conflicts = 0
    for seed in range(8):
        data = batch(seed)
        scalars = method.backward(data, torch.Generator())
        g, k = gradients(method, data, temperature=2.0)
        inner = float((g * k).sum())
        conflicts += inner < 0
        expected = g - share * min(inner, 0) / float((k * k).sum()) * k
        torch.testing.assert_close(method.context.grad, expected, atol=1e-5, rtol=1e-3)
        agreement = inner / float(g.norm() * k.norm())
        assert scalars["train/agreement"] == pytest.approx(agreement, abs=1e-4)
        loss = functional.cross_entropy(method(data.inputs), data.labels).item()
        assert scalars["train/loss"] == pytest.approx(loss, rel=1e-4)
    assert 0 < conflicts < 8, "batches of both kinds are meant to be seen"


@pytest.mark.parametrize(
    ("dataset", "shots", "projection"),
    [("digits", 16, 1.0), ("dtd", 4, 1.0), ("dtd", 8, 0.8), ("eurosat", 16, 0.8)],
)
def test_presets(dataset: str, shots: int, projection: float) -> None:
    config, optim, _ = ProGrad.preset("paper", TaskFacts(dataset, shots, 1))
    assert config == ProGradConfig(prompts="single", projection=projection)
    assert (optim.optimiser, optim.lr, optim.batch_size) == ("sgd", 2e-3, 32)
    reference = ProGrad.preset("reference", TaskFacts(dataset, shots, 1))
    assert reference.config.init_words == WORDS[dataset]
    assert reference.optim.weight_decay == 5e-4
