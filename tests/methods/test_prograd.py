"""ProGrad: the projection, the divergence, and that a step is made of both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.registry import load_backbone
from trainables.data.prompts import class_features, prompt_set
from trainables.methods.base import Batch, Classes, Material, MethodError, Schedule
from trainables.methods.prograd import WORDS, ProGrad, ProGradConfig, aligned, divergence

NAMES = ("zero", "one")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


def build(backbone: Backbone, config: ProGradConfig) -> ProGrad:
    prompts = prompt_set("any", NAMES, "photo")
    classes = Classes(class_features(backbone, prompts), prompts)
    return ProGrad.build(config, Material(backbone, classes, Schedule(())))


def batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    labels = torch.zeros(6, dtype=torch.int64)
    # A teacher that is sure of the other class: the two gradients conflict.
    teacher = 9.0 * functional.one_hot(1 - labels, 2)
    return Batch(torch.randn(6, 128, generator=rng), labels, teacher)


VECTORS = st.integers(0, 10_000).map(
    lambda seed: torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).double()
)


@given(own=VECTORS, general=VECTORS, share=st.floats(0, 1), size=st.floats(1e-3, 1e3))
@settings(max_examples=200)
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
    method, data = build(backbone, config), batch()
    assert method.uses_zero_shot
    scalars = method.backward(data, torch.Generator())
    found = method.context.grad
    logits = method(data.inputs)
    loss = functional.cross_entropy(logits, data.labels)
    assert data.zero_shot_logits is not None
    away = divergence(logits, data.zero_shot_logits, 2.0)
    (g,) = torch.autograd.grad(loss, method.context, retain_graph=True)
    (k,) = torch.autograd.grad(away, method.context)
    inner = float((g * k).sum())
    assert inner < 0, "the batch is meant to conflict"
    expected = g - share * inner / float((k * k).sum()) * k
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    assert scalars["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert scalars["train/divergence"] == pytest.approx(away.item(), rel=1e-5)
    assert scalars["train/agreement"] == pytest.approx(inner / float(g.norm() * k.norm()), rel=1e-3)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (ProGradConfig(projection=-0.1), "projection must be finite and >= 0, got -0.1"),
        (ProGradConfig(projection=float("nan")), "projection"),
        (ProGradConfig(temperature=0.0), "temperature must be positive and finite, got 0.0"),
    ],
)
def test_refuses(backbone: Backbone, config: ProGradConfig, error: str) -> None:
    with pytest.raises(MethodError, match=error):
        build(backbone, config)


@pytest.mark.parametrize(
    ("dataset", "shots", "projection"),
    [("digits", 16, 1.0), ("dtd", 4, 1.0), ("dtd", 8, 0.8), ("eurosat", 16, 0.8)],
)
def test_presets(dataset: str, shots: int, projection: float) -> None:
    config, optim, _ = ProGrad.preset("paper", dataset=dataset, shots=shots, images=1)
    assert config == ProGradConfig(prompts="single", projection=projection)
    assert (optim.optimiser, optim.lr, optim.batch_size) == ("sgd", 2e-3, 32)
    reference = ProGrad.preset("reference", dataset=dataset, shots=shots, images=1)
    assert reference.config.init_words == WORDS[dataset]
    assert reference.optim.weight_decay == 5e-4
