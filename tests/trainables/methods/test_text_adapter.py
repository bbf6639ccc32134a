"""The adapter on the text features: its formula, its start, what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.methods.base import BuildContext, ClassTexts, MethodError, Schedule, TaskFacts
from trainables.methods.text_adapter import TextAdapter, TextAdapterConfig


def base(classes: int = 5, features: int = 128) -> torch.Tensor:
    return 8 * torch.randn(classes, features, generator=torch.Generator().manual_seed(1))


def build(backbone: Backbone, config: TextAdapterConfig, seed: int = 0) -> TextAdapter:
    rng = torch.Generator().manual_seed(seed)
    return TextAdapter.build(
        config, BuildContext(backbone, ClassTexts(base()), Schedule(()), images=9, rng=rng)
    )


@settings(max_examples=25, deadline=None)
@given(
    keep_base=st.booleans(),
    alpha=st.floats(0.1, 4),
    reduction=st.integers(1, 128),
    seed=st.integers(0, 2**32 - 1),
)
def test_logits_formula(
    backbone: Backbone, keep_base: bool, alpha: float, reduction: int, seed: int
) -> None:
    """Said with PyTorch's own layers."""
    config = TextAdapterConfig(keep_base=keep_base, alpha=alpha, reduction=reduction)
    method = build(backbone, config, seed)
    t, hidden = base(), 128 // reduction
    z = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed))
    down, up = torch.nn.Linear(128, hidden, bias=False), torch.nn.Linear(hidden, 128, bias=False)
    with torch.no_grad():
        down.weight.copy_(method.down.T)
        up.weight.copy_(method.up.T)
        w = up(torch.relu(down(t)))
        w = t + alpha * w if keep_base else w
        cosine = functional.cosine_similarity(z[:, None], w[None], dim=-1, eps=1e-12)
        torch.testing.assert_close(method(z), backbone.logit_scale * cosine, atol=2e-3, rtol=1e-4)


def test_it_starts_as_a_linear_layer_of_pytorch_does(backbone: Backbone) -> None:
    """The spread of a uniform distribution within 1 / sqrt(inputs), from the given generator."""
    method, same, other = (build(backbone, TextAdapterConfig(), seed) for seed in (0, 0, 1))
    for name, inputs in (("down", 128), ("up", 32)):
        weight = method.trainable()[name].detach()
        bound = inputs**-0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert abs(weight.mean().item()) < 0.05 * bound
        assert torch.equal(weight, same.trainable()[name])
        assert not torch.equal(weight, other.trainable()[name])


def test_beside_the_base_it_starts_near_zero_shot(backbone: Backbone) -> None:
    """And alone it does not: the paper's 28 % with one shot, where zero-shot has 60 %."""
    t = functional.normalize(base(), dim=-1)
    kept = build(backbone, TextAdapterConfig())
    alone = build(backbone, TextAdapterConfig(keep_base=False))
    with torch.no_grad():
        near, far = (
            (functional.normalize(m(t) / backbone.logit_scale, dim=-1)).diagonal().mean()
            for m in (kept, alone)
        )
        assert (kept(t).argmax(dim=-1) == torch.arange(5)).all()
    assert near > 0.9
    assert far < 0.7


def test_other_classes_pass_through_the_same_adapter(backbone: Backbone) -> None:
    method, other = build(backbone, TextAdapterConfig()), base(3)
    method.set_classes(ClassTexts(other))
    fresh = TextAdapter.build(
        TextAdapterConfig(), BuildContext(backbone, ClassTexts(other), Schedule(()), images=9)
    )
    fresh.load_artifact(*method.artifact())
    z = torch.randn(4, 128, generator=torch.Generator().manual_seed(3))
    assert method(z).shape == (4, 3)
    assert torch.equal(method(z), fresh(z))


def test_the_share_is_reported_without_alpha(backbone: Backbone) -> None:
    method = build(backbone, TextAdapterConfig(alpha=3.0))
    with torch.no_grad():
        method.down.copy_(torch.eye(128)[:, :32])
        method.up.copy_(2 * torch.eye(128)[:32])
    t = base()
    expected = (2 * t[:, :32].relu()).norm(dim=-1) / t.norm(dim=-1)
    assert method.progress() == {"adapter/share": pytest.approx(expected.mean().item(), rel=1e-5)}


def test_published_settings() -> None:
    for dataset, shots, lr, epochs in (
        ("oxford_flowers", 4, 2e-3, 100),
        ("imagenet", 8, 2e-4, 200),
    ):
        for name, decay, crop in (("paper", 0.0, 1.0), ("reference", 5e-4, 0.08)):
            found = TextAdapter.preset(name, TaskFacts(dataset, shots, 9))
            assert found.config == TextAdapterConfig(prompts=name, keep_base=True, alpha=0.5)
            assert (found.optim.lr, found.optim.epochs) == (lr, epochs)
            assert (found.optim.weight_decay, found.crop_scale) == (decay, crop)


def test_refuses_more_hidden_units_than_features(backbone: Backbone) -> None:
    with pytest.raises(MethodError, match="must not exceed the 128 features"):
        build(backbone, TextAdapterConfig(reduction=129))
