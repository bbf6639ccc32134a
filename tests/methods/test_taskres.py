"""TaskRes and the zero-shot model: formulas, presets, settings that are refused."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.registry import load_backbone
from trainables.methods.base import Batch, Classes, Material, MethodError, Schedule
from trainables.methods.taskres import TaskRes, TaskResConfig


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


def build(backbone: Backbone, config: TaskResConfig) -> TaskRes:
    features = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    return TaskRes.build(config, Material(backbone, Classes(features), Schedule(())))


@pytest.mark.parametrize("learn_alpha", [False, True])
@pytest.mark.parametrize("normalise_base", [False, True])
def test_logits_formula(backbone: Backbone, learn_alpha: bool, normalise_base: bool) -> None:
    config = TaskResConfig(alpha=0.25, learn_alpha=learn_alpha, normalise_base=normalise_base)
    method = build(backbone, config)
    t = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    if normalise_base:
        t = functional.normalize(t, dim=-1)
    x, z = torch.randn(5, 128), torch.randn(3, 128)
    with torch.no_grad():
        method.residual.copy_(x)
        logits = method(z)
    cosine = functional.cosine_similarity(z[:, None], (t + 0.25 * x)[None], dim=-1)
    torch.testing.assert_close(logits, backbone.logit_scale * cosine, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("learn_alpha", [True, False])
def test_the_gradient_in_closed_form_is_autograds(backbone: Backbone, learn_alpha: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    base, residual = torch.randn(2, 7, 16, generator=rng)
    inputs, labels = torch.randn(9, 16, generator=rng), torch.arange(9) % 7
    config = TaskResConfig(alpha=0.3, learn_alpha=learn_alpha)
    method = TaskRes.build(config, Material(backbone, Classes(base), Schedule(())))
    with torch.no_grad():
        method.residual.copy_(residual)
    found = method.backward(Batch(inputs, labels), rng)
    gradients = {name: tensor.grad for name, tensor in method.trainable().items()}
    method.zero_grad()
    loss = functional.cross_entropy(method(inputs), labels)
    loss.backward()
    assert found["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, tensor in method.trainable().items():
        torch.testing.assert_close(gradients[name], tensor.grad, rtol=1e-4, atol=1e-6)


def test_first_gradient_of_alpha_is_zero(backbone: Backbone) -> None:
    method = build(backbone, TaskResConfig(learn_alpha=True))
    method.backward(Batch(torch.randn(4, 128), torch.arange(4)), torch.Generator())
    assert method.alpha_logit is not None
    assert method.alpha_logit.grad is not None
    assert method.alpha_logit.grad.item() == 0


def test_learned_alpha_travels_in_the_artifact(backbone: Backbone) -> None:
    method = build(backbone, TaskResConfig(learn_alpha=True))
    with torch.no_grad():
        method.alpha_logit.fill_(-0.3)
        method.residual.normal_()
    for config in (TaskResConfig(), TaskResConfig(alpha=2)):
        other = build(backbone, config)
        other.load_artifact(*method.artifact())
        z = torch.randn(3, 128)
        assert torch.equal(other(z), method(z))


@pytest.mark.parametrize(
    ("dataset", "shots", "alpha", "lr", "epochs"),
    [
        ("oxford_pets", 4, 0.5, 2e-3, 100),
        ("oxford_flowers", 8, 1.0, 2e-3, 200),
        ("imagenet", 16, 0.5, 2e-4, 200),
    ],
)
def test_published_settings(dataset: str, shots: int, alpha: float, lr: float, epochs: int) -> None:
    for name, decay in (("paper", 0.0), ("reference", 5e-4), ("clean", 0.0)):
        config, optim, crop_scale = TaskRes.preset(name, dataset=dataset, shots=shots, images=9)
        assert (config.alpha, optim.lr, optim.epochs) == (alpha, lr, epochs)
        assert (optim.batch_size, optim.warmup_epochs, optim.warmup_lr) == (256, 1, 1e-5)
        assert (optim.weight_decay, config.prompts) == (decay, name)
        assert crop_scale == (0.08 if name == "reference" else 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": float("inf")}, "alpha must be positive"),
        ({"alpha": 1.0, "learn_alpha": True}, "alpha must be below 1"),
    ],
)
def test_refuses_broken_settings(
    backbone: Backbone, change: dict[str, object], message: str
) -> None:
    config = replace(TaskResConfig(), **change)
    assert [message in problem for problem in config.problems()] == [True]
    with pytest.raises(MethodError, match=message):
        build(backbone, config)


def test_refuses_another_number_of_classes(backbone: Backbone) -> None:
    tensors, metadata = build(backbone, TaskResConfig()).artifact()
    with pytest.raises(MethodError, match="shapes"):
        build(backbone, TaskResConfig()).load_artifact(
            tensors | {"residual": torch.zeros(4, 128)}, metadata
        )
    with pytest.raises(MethodError, match="finite"):
        build(backbone, TaskResConfig()).load_artifact(
            tensors | {"residual": torch.full((5, 128), torch.nan)}, metadata
        )
