"""KgCoOp: its loss against NumPy, CoOp as its limit, presets, what is refused."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.trainables.methods.named_classes import NAMES, context
from trainables.backbones.base import Backbone
from trainables.core.optim import OptimConfig, make_optimiser
from trainables.methods.base import Batch, TaskFacts
from trainables.methods.context import ContextConfig
from trainables.methods.coop import CoOp
from trainables.methods.kgcoop import KgCoOp, KgCoOpConfig, distance

WORDS = "a photo of a"


def batch(seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (6,), generator=rng)
    return Batch(torch.randn(6, 128, generator=rng), labels)


def trained(method: CoOp | KgCoOp, steps: int = 4) -> list[float]:
    optimiser = make_optimiser(
        method.trainable().values(), OptimConfig(2e-2, 1, 6, optimiser="sgd")
    )
    losses = []
    for step in range(steps):
        losses.append(method.backward(batch(step), torch.Generator())["train/loss"])
        optimiser.step()
    return losses


@pytest.mark.parametrize("own", [False, True])
def test_loss_formula(backbone: Backbone, own: bool) -> None:
    """In NumPy, from the learned and the written features; half the paper's squared distance."""
    config = KgCoOpConfig(context_tokens=3, class_specific=own, knowledge_weight=2.5)
    method, data = (
        KgCoOp.build(config, context(backbone, variant="single", dataset="oxford_pets")),
        batch(0),
    )
    found = method.backward(data, torch.Generator())
    with torch.no_grad():
        w = method.classifier().numpy().astype(np.float64)
    written = [f"a photo of a {name}, a type of pet." for name in NAMES]
    t = backbone.encode_text(written).numpy().astype(np.float64)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    z = data.inputs.numpy() / np.linalg.norm(data.inputs.numpy(), axis=1, keepdims=True)
    logits = backbone.logit_scale.item() * z @ w.T
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -logs[np.arange(6), data.labels.numpy()].mean()
    away = np.mean([1 - w[c] @ t[c] for c in range(3)])
    assert away == pytest.approx(((w - t) ** 2).sum(axis=1).mean() / 2, abs=1e-6)
    assert found["train/cross_entropy"] == pytest.approx(loss, rel=1e-4)
    assert found["train/distance"] == pytest.approx(away, rel=1e-4)
    assert found["train/loss"] == pytest.approx(loss + 2.5 * away, rel=1e-4)


def test_without_weight_it_is_coop(backbone: Backbone) -> None:
    method = KgCoOp.build(
        KgCoOpConfig(context_tokens=4, knowledge_weight=0.0), context(backbone, variant="single")
    )
    coop = CoOp.build(ContextConfig(context_tokens=4), context(backbone, variant="single"))
    assert trained(method) == pytest.approx(trained(coop), rel=1e-5)
    torch.testing.assert_close(method.context, coop.context, rtol=1e-5, atol=1e-6)


def test_from_the_words_of_the_template_the_distance_is_zero(backbone: Backbone) -> None:
    method = KgCoOp.build(
        KgCoOpConfig(context_tokens=4, init_words=WORDS), context(backbone, variant="single")
    )
    found = method.backward(batch(0), torch.Generator())
    assert found["train/distance"] == pytest.approx(0, abs=1e-5)


def test_more_weight_keeps_the_features_nearer(backbone: Backbone) -> None:
    ends = []
    for weight in (0.0, 8.0, 200.0):
        config = KgCoOpConfig(context_tokens=4, init_words=WORDS, knowledge_weight=weight)
        method = KgCoOp.build(config, context(backbone, variant="single"))
        trained(method, steps=12)
        with torch.no_grad():
            ends.append(distance(method.classifier(), method.texts).item())
    assert ends[0] > ends[1] > ends[2] > 0


def test_distance_has_its_bounds() -> None:
    unit = functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
    assert distance(unit, unit).item() == pytest.approx(0, abs=1e-6)
    assert distance(unit, -unit).item() == pytest.approx(2)


def test_published_settings() -> None:
    for name, decay, crop in (("paper", 0.0, 1.0), ("reference", 5e-4, 0.08)):
        for shots in (1, 4, 16):
            found = KgCoOp.preset(name, TaskFacts("dtd", shots, 47 * shots))
            assert found.config == KgCoOpConfig("single", 4, WORDS, knowledge_weight=8.0)
            assert (found.optim.optimiser, found.optim.lr) == ("sgd", 2e-3)
            assert (found.optim.epochs, found.optim.batch_size) == (100, 128)
            assert (found.optim.weight_decay, found.crop_scale) == (decay, crop)
    clean = KgCoOp.preset("clean", TaskFacts("dtd", 16, 752)).optim
    assert (clean.epochs, clean.batch_size) == (200, 32)
