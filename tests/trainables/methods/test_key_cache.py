"""Tip-Adapter with fixed and trained keys: formula, keys from views, what travels, refusals."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from trainables.load_backbone import load_backbone
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    Support,
    TaskFacts,
)
from trainables.methods.tip_adapter import KeyCache, TipAdapter, TipAdapterConfig, TipAdapterF

KINDS: list[tuple[type[KeyCache], Any]] = [
    (TipAdapter, TipAdapterConfig),
    (TipAdapterF, TipAdapterConfig),
]
CLASSES, SIDE, IMAGES = 3, 8, 6
LABELS = torch.tensor([2, 0, 1, 1, 0, 2])


def texts() -> torch.Tensor:
    return torch.randn(CLASSES, SIDE, generator=torch.Generator().manual_seed(1))


def views() -> torch.Tensor:
    return torch.randn(2, IMAGES, SIDE, generator=torch.Generator().manual_seed(2))


def build(kind: type[KeyCache], config: Any, images: int = IMAGES) -> KeyCache:
    context = BuildContext(load_backbone("tiny"), ClassTexts(texts()), Schedule(()), images)
    return kind.build(config, context)


def prepared(kind: type[KeyCache], config: Any) -> KeyCache:
    method = build(kind, config)
    method.prepare(Support(LABELS, 2, views().__getitem__, lambda: iter(())))
    return method


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_logits_formula(kind: type[KeyCache], config: Any) -> None:
    method = prepared(kind, config(alpha=1.5, beta=2.0))
    z = torch.randn(4, SIDE, generator=torch.Generator().manual_seed(4))
    logits = method(z)
    keys = views().mean(dim=0)
    scale = load_backbone("tiny").logit_scale
    for row in range(4):
        for k in range(CLASSES):
            wanted = scale * functional.cosine_similarity(z[row], texts()[k], dim=0)
            for image in range(IMAGES):
                if LABELS[image] == k:
                    near = functional.cosine_similarity(z[row], keys[image], dim=0)
                    wanted = wanted + 1.5 * torch.exp(-2.0 * (1 - near))
            torch.testing.assert_close(logits[row, k], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_other_classes_do_not_hear_the_cache(kind: type[KeyCache], config: Any) -> None:
    method = prepared(kind, config())
    other, z = torch.randn(5, SIDE), torch.randn(4, SIDE)
    method.set_classes(ClassTexts(other))
    cosine = functional.cosine_similarity(z[:, None], other[None], dim=-1)
    torch.testing.assert_close(method(z), load_backbone("tiny").logit_scale * cosine)


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_weights_travel_in_the_artifact(kind: type[KeyCache], config: Any) -> None:
    method, fresh = prepared(kind, config(alpha=3.0, beta=2.0)), build(kind, config())
    fresh.load_artifact(*method.artifact())
    z = torch.randn(4, SIDE)
    assert torch.equal(fresh(z), method(z))


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_refuses_damage(kind: type[KeyCache], config: Any) -> None:
    tensors, metadata = prepared(kind, config()).artifact()
    for labels in (LABELS + 1, LABELS - 2, LABELS.float()):
        with pytest.raises(MethodError, match="labels must be int64"):
            build(kind, config()).load_artifact(tensors | {"labels": labels}, metadata)
    with pytest.raises(MethodError, match="shapes"):
        build(kind, config(), images=IMAGES + 1).load_artifact(tensors, metadata)


def test_the_two_kinds_do_not_read_each_other() -> None:
    artifact = prepared(TipAdapter, TipAdapterConfig()).artifact()
    with pytest.raises(MethodError, match="metadata"):
        build(TipAdapterF, TipAdapterConfig()).load_artifact(*artifact)


def test_only_keys_are_trained() -> None:
    method = prepared(TipAdapterF, TipAdapterConfig())
    assert list(method.trainable()) == ["keys"]
    assert prepared(TipAdapter, TipAdapterConfig()).trainable() == {}
    batch = Batch(views()[0], LABELS)
    method.backward(batch, torch.Generator())
    assert method.keys.grad is not None
    ahead, near = method.keys.detach().double(), 1e-3
    direction = torch.randn(IMAGES, SIDE, generator=torch.Generator().manual_seed(5)).double()
    slope = (method.keys.grad.double() * direction).sum()
    losses = []
    method.double()
    for sign in (1, -1):
        with torch.no_grad():
            method.keys.copy_(ahead + sign * near * direction)
            logits = method(views()[0].double())
            losses.append(functional.cross_entropy(logits, LABELS))
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * near), slope, atol=1e-4, rtol=1e-3)


def test_published_settings() -> None:
    for dataset, epochs in (("eurosat", 100), ("dtd", 20)):
        config, optim, crop_scale = TipAdapterF.preset("paper", TaskFacts(dataset, 4, 9))
        assert (config.alpha, config.beta, crop_scale) == (1.0, 5.5, 0.5)
        assert (optim.lr, optim.epochs, optim.batch_size) == (1e-3, epochs, 256)
        assert (optim.optimiser, optim.eps, optim.weight_decay) == ("adamw", 1e-4, 1e-2)
        config = TipAdapter.preset("reference", TaskFacts(dataset, 4, 9)).config
        assert (config.alpha, config.beta) == (2.0, 1.0)
