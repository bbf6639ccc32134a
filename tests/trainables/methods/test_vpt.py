"""VPT: tokens in the tower against the tower's own words, recipes, what is refused."""

import pytest
import torch
from torch.nn import functional

from tests.trainables.methods.named_classes import images
from trainables.backbones.base import Backbone
from trainables.backbones.image_tower import image_tower
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    TaskFacts,
)
from trainables.methods.vpt import Vpt, VptConfig


def build(backbone: Backbone, config: VptConfig, seed: int = 0) -> Vpt:
    features = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(seed)
    return Vpt.build(config, BuildContext(backbone, ClassTexts(features), Schedule(()), rng=rng))


@pytest.mark.parametrize("deep", [False, True])
def test_logits(backbone: Backbone, deep: bool) -> None:
    method = build(backbone, VptConfig(tokens=6, deep=deep))
    assert method.tokens.shape == (4 if deep else 1, 6, 128)
    text = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    features = image_tower(backbone).encode(images(), method.tokens.unbind())
    cosine = functional.cosine_similarity(features[:, None], text[None], dim=-1)
    torch.testing.assert_close(
        method(images()), backbone.logit_scale * cosine, atol=1e-4, rtol=1e-5
    )


def test_first_values(backbone: Backbone) -> None:
    tokens = build(backbone, VptConfig(tokens=50)).tokens
    assert tokens.std().item() == pytest.approx(0.02, rel=0.02)
    assert tokens.mean().abs().item() < 5 * 0.02 / tokens.numel() ** 0.5
    assert torch.equal(tokens, build(backbone, VptConfig(tokens=50)).tokens)
    assert not torch.equal(tokens, build(backbone, VptConfig(tokens=50), seed=1).tokens)


def test_the_tower_is_as_it_was(backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    method = build(backbone, VptConfig())
    method.backward(Batch(images(), torch.arange(4)), torch.Generator())
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert (method.tokens.grad.abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("deep", [False, True])
def test_the_gradient_is_the_slope(backbone: Backbone, deep: bool) -> None:
    """Along the gradient the loss rises as its length says, within a central difference."""
    method = build(backbone, VptConfig(tokens=3, deep=deep))
    batch = Batch(images(), torch.arange(4))
    method.backward(batch, torch.Generator())
    slope = method.tokens.grad.norm()
    way, losses = method.tokens.grad / slope, []
    with torch.no_grad():
        for step in (1e-2, -2e-2):
            method.tokens.add_(way, alpha=step)
            losses.append(functional.cross_entropy(method(batch.inputs), batch.labels).item())
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(slope.item(), rel=0.02)


def test_other_classes_keep_the_tokens(backbone: Backbone) -> None:
    method = build(backbone, VptConfig())
    tokens, others = method.tokens.detach().clone(), torch.randn(7, 128)
    method.set_classes(ClassTexts(others))
    assert torch.equal(method.tokens, tokens)
    features = image_tower(backbone).encode(images(), tokens.unbind())
    cosine = functional.cosine_similarity(features[:, None], others[None], dim=-1)
    torch.testing.assert_close(
        method(images()), backbone.logit_scale * cosine, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("count", "clean", "steps"), [(10, 1000, 10), (160, 50, 200), (1600, 5, 2000)]
)
def test_published_settings(count: int, clean: int, steps: int) -> None:
    for name in ("paper", "reference", "clean"):
        config, optim, crop_scale = Vpt.preset(name, TaskFacts("dtd", 16, count))
        assert (config.tokens, config.deep, crop_scale) == (8, True, 0.08)
        assert (optim.optimiser, optim.lr, optim.batch_size) == ("sgd", 2.5e-3, 4)
        assert (optim.warmup_epochs, optim.warmup_lr, optim.momentum) == (1, 1e-5, 0.9)
        assert optim.weight_decay == (5e-4 if name == "reference" else 0)
        assert config.prompts == ("single" if name == "clean" else "photo")
        assert optim.epochs == (clean if name == "clean" else 5)
        assert name == "clean" or len(optim.learning_rates(count)) == steps


def test_refuses_an_artifact_of_another_depth(backbone: Backbone) -> None:
    artifact = build(backbone, VptConfig()).artifact()
    for config in (VptConfig(deep=False), VptConfig(tokens=4)):
        with pytest.raises(MethodError, match="shapes"):
            build(backbone, config).load_artifact(*artifact)
