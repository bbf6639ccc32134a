"""The linear adapter: its formula, its start, its limit TaskRes, what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    TaskFacts,
)
from trainables.methods.linear_adapter import LinearAdapter, LinearAdapterConfig
from trainables.methods.taskres import TaskRes, TaskResConfig


def base(classes: int = 5) -> torch.Tensor:
    return 8 * torch.randn(classes, 128, generator=torch.Generator().manual_seed(1))


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 128, generator=torch.Generator().manual_seed(2))


def build(backbone: Backbone, **fields: Any) -> LinearAdapter:
    context = BuildContext(backbone, ClassTexts(base()), Schedule(()))
    return LinearAdapter.build(LinearAdapterConfig(**fields), context)


def fill(method: LinearAdapter, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in method.trainable().values():
            tensor.normal_(0, 0.1, generator=rng)


@settings(max_examples=25, deadline=None)
@given(
    adapted=st.sampled_from(["text", "image"]),
    bias=st.booleans(),
    alpha=st.floats(0.1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_logits_formula(
    backbone: Backbone, adapted: str, bias: bool, alpha: float, seed: int
) -> None:
    """With PyTorch's own layer."""
    method = build(backbone, adapted=adapted, bias=bias, alpha=alpha)
    fill(method, seed)
    layer = nn.Linear(128, 128, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(method.matrix.T)
        if method.bias is not None:
            layer.bias.copy_(method.bias)
        t, z = base(), images()
        if adapted == "text":
            t = t + alpha * layer(t)
        else:
            z = z + alpha * layer(z)
        cosine = functional.cosine_similarity(z[:, None], t[None], dim=-1)
        expected = backbone.logit_scale * cosine
        torch.testing.assert_close(method(images()), expected, atol=2e-3, rtol=1e-4)
    assert set(method.trainable()) == {"matrix", *(["bias"] if bias else [])}


@pytest.mark.parametrize("adapted", ["text", "image"])
def test_starts_as_the_zero_shot_model(backbone: Backbone, adapted: str) -> None:
    cosine = functional.cosine_similarity(images()[:, None], base()[None], dim=-1)
    found = build(backbone, adapted=adapted)(images())
    torch.testing.assert_close(found, backbone.logit_scale * cosine, atol=2e-4, rtol=1e-5)


def test_the_bias_on_images_is_the_residual_of_taskres(backbone: Backbone) -> None:
    """With A = 0, v has the logits and the gradient of TaskRes-I's residual."""
    method = build(backbone, adapted="image")
    config = TaskResConfig(residual="image")
    other = TaskRes.build(config, BuildContext(backbone, ClassTexts(base()), Schedule(())))
    assert method.bias is not None
    assert other.image_residual is not None
    residual = 0.3 * torch.randn(128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        method.bias.copy_(residual)
        other.image_residual.copy_(residual)
    batch = Batch(images(), torch.arange(6) % 5)
    torch.testing.assert_close(method(images()), other(images()), atol=1e-4, rtol=1e-5)
    method.backward(batch, torch.Generator())
    other.backward(batch, torch.Generator())
    assert method.bias.grad is not None
    assert other.image_residual.grad is not None
    torch.testing.assert_close(method.bias.grad, other.image_residual.grad[0], atol=1e-5, rtol=1e-3)


def test_only_an_adapter_on_the_texts_is_linear_in_the_features(backbone: Backbone) -> None:
    for adapted in ("text", "image"):
        method = build(backbone, adapted=adapted)
        fill(method, 0)
        assert (method.linear_head() is None) == (adapted == "image")


def test_other_classes_pass_through_the_same_adapter(backbone: Backbone) -> None:
    for adapted in ("text", "image"):
        method = build(backbone, adapted=adapted)
        fill(method, 0)
        expected = method(images())[:, :3]
        method.set_classes(ClassTexts(base()[:3]))
        torch.testing.assert_close(method(images()), expected)


def test_sizes_are_reported_without_alpha(backbone: Backbone) -> None:
    method = build(backbone, alpha=3.0)
    with torch.no_grad():
        method.matrix.copy_(torch.eye(128))
        assert method.bias is not None
        method.bias.fill_(1.0)
    length = pytest.approx(128**0.5, rel=1e-5)
    assert method.progress() == {"adapter/norm": length, "adapter/bias": length}


def test_an_artifact_belongs_to_its_place_and_weight(backbone: Backbone) -> None:
    artifact = build(backbone).artifact()
    for fields in ({"adapted": "image"}, {"alpha": 2.0}, {"bias": False}):
        with pytest.raises(MethodError):
            build(backbone, **fields).load_artifact(*artifact)


def test_settings() -> None:
    for name, decay, crop in (("paper", 0.0, 1.0), ("reference", 5e-4, 0.08)):
        found = LinearAdapter.preset(name, TaskFacts("imagenet", 8, 9))
        assert found.config == LinearAdapterConfig(prompts=name)
        assert (found.optim.lr, found.optim.epochs) == (2e-4, 200)
        assert (found.optim.weight_decay, found.crop_scale) == (decay, crop)
