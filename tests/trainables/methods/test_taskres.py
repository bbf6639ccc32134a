"""TaskRes and the zero-shot model: formulas, presets, settings that are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from trainables.methods.taskres import Residual, TaskRes, TaskResConfig


def build(backbone: Backbone, config: TaskResConfig) -> TaskRes:
    features = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    return TaskRes.build(config, BuildContext(backbone, ClassTexts(features), Schedule(())))


@pytest.mark.parametrize("residual", ["text", "image", "both"])
@pytest.mark.parametrize("learn_alpha", [False, True])
@pytest.mark.parametrize("normalise_base", [False, True])
def test_logits_formula(
    backbone: Backbone, residual: Residual, learn_alpha: bool, normalise_base: bool
) -> None:
    config = TaskResConfig(
        residual=residual, alpha=0.25, learn_alpha=learn_alpha, normalise_base=normalise_base
    )
    method = build(backbone, config)
    rng = torch.Generator().manual_seed(1)
    t = torch.randn(5, 128, generator=rng)
    if normalise_base:
        t = functional.normalize(t, dim=-1)
    z, x, y = (torch.randn(n, 128, generator=rng) for n in (3, 5, 1))
    learned = {"residual": x, "image_residual": y}
    residuals = {n: p for n, p in method.trainable().items() if n != "alpha_logit"}
    assert (
        residuals.keys()
        == {
            "text": {"residual"},
            "image": {"image_residual"},
            "both": {"residual", "image_residual"},
        }[residual]
    )
    with torch.no_grad():
        for name, parameter in residuals.items():
            assert not parameter.any()
            parameter.copy_(learned[name])
        logits = method(z)
    w = t + 0.25 * x if residual != "image" else t
    v = z + 0.25 * y if residual != "text" else z
    cosine = functional.cosine_similarity(v[:, None], w[None], dim=-1)
    torch.testing.assert_close(logits, backbone.logit_scale * cosine, atol=1e-4, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    residual=st.sampled_from(["text", "image", "both"]),
    learn_alpha=st.booleans(),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(2, 16)),
    size=st.floats(0.1, 30),
)
def test_the_gradient_in_closed_form_is_autograds(
    backbone: Backbone,
    seed: int,
    residual: Residual,
    learn_alpha: bool,
    shape: tuple[int, int, int],
    size: float,
) -> None:
    images, classes, dimension = shape
    rng = torch.Generator().manual_seed(seed)
    base, inputs = (size * torch.randn(n, dimension, generator=rng) for n in (classes, images))
    labels = torch.randint(classes, (images,), generator=rng)
    config = TaskResConfig(residual=residual, alpha=0.3, learn_alpha=learn_alpha)
    method = TaskRes.build(config, BuildContext(backbone, ClassTexts(base), Schedule(()))).double()
    with torch.no_grad():
        for name, parameter in method.trainable().items():
            if name != "alpha_logit":
                parameter.copy_(size * torch.randn(parameter.shape, generator=rng))
    found = method.backward(Batch(inputs.double(), labels), rng)
    gradients = {name: tensor.grad for name, tensor in method.trainable().items()}
    method.zero_grad()
    loss = functional.cross_entropy(method(inputs.double()), labels)
    loss.backward()
    assert found["train/loss"] == pytest.approx(loss.item(), rel=1e-9, abs=1e-12)
    for name, tensor in method.trainable().items():
        torch.testing.assert_close(gradients[name], tensor.grad, rtol=1e-6, atol=1e-8)


def test_other_classes_keep_the_residual_of_the_images(backbone: Backbone) -> None:
    """One belongs to classes, the other does not."""
    method = build(backbone, TaskResConfig(residual="both"))
    rng = torch.Generator().manual_seed(2)
    y, z, other = (torch.randn(n, 128, generator=rng) for n in (1, 3, 2))
    assert method.residual is not None
    assert method.image_residual is not None
    with torch.no_grad():
        method.residual.fill_(1.0)
        method.image_residual.copy_(y)
        method.set_classes(ClassTexts(other))
        logits = method(z)
    cosine = functional.cosine_similarity((z + 0.5 * y)[:, None], other[None], dim=-1)
    torch.testing.assert_close(logits, backbone.logit_scale * cosine, atol=1e-4, rtol=1e-5)


def test_each_residual_is_reported(backbone: Backbone) -> None:
    for residual, kinds in (
        ("text", {"residual"}),
        ("image", {"image_residual"}),
        ("both", {"residual", "image_residual"}),
    ):
        method = build(backbone, TaskResConfig(residual=residual))
        with torch.no_grad():
            for parameter in method.trainable().values():
                parameter.fill_(-2.0)
        sizes = {f"{kind}/mean": 2.0 for kind in kinds}
        sizes |= {f"{kind}/norm": pytest.approx(2 * 128**0.5) for kind in kinds}
        assert method.progress() == sizes | {"residual/alpha": 0.5}


def test_an_artifact_fits_its_kind_of_residual_only(backbone: Backbone) -> None:
    kinds: tuple[Residual, ...] = ("text", "image", "both")
    for kind in kinds:
        artifact = build(backbone, TaskResConfig(residual=kind)).artifact()
        for other in kinds:
            method = build(backbone, TaskResConfig(residual=other))
            if kind == other:
                method.load_artifact(*artifact)
                continue
            with pytest.raises(MethodError, match="shapes"):
                method.load_artifact(*artifact)


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
        config, optim, crop_scale = TaskRes.preset(name, TaskFacts(dataset, shots, 9))
        assert (config.alpha, optim.lr, optim.epochs) == (alpha, lr, epochs)
        assert (optim.batch_size, optim.warmup_epochs, optim.warmup_lr) == (256, 1, 1e-5)
        assert (optim.weight_decay, config.prompts) == (decay, name)
        assert crop_scale == (0.08 if name == "reference" else 1.0)


def test_a_learned_alpha_is_below_one(backbone: Backbone) -> None:
    with pytest.raises(MethodError, match="alpha must be below 1"):
        build(backbone, TaskResConfig(alpha=1.0, learn_alpha=True))


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
