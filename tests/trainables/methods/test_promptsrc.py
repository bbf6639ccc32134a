"""PromptSRC: its losses against NumPy, MaPLe's towers as its limit, its average, recipes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainables.methods.named_classes import NAMES, OTHERS, context
from trainables.backbones.base import Backbone
from trainables.backbones.image_tower import image_tower
from trainables.core.optim import OptimConfig
from trainables.data.prompts import SIXTY, prompt_set
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.base import Batch, MethodError, TaskFacts
from trainables.methods.context import ContextConfig
from trainables.methods.coop import CoOp
from trainables.methods.promptsrc import (
    PromptSrc,
    PromptSrcConfig,
    WeightAverage,
    divergence,
    gaussian,
)
from trainables.methods.vpt import Vpt, VptConfig
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig


def build(backbone: Backbone, seed: int = 0, **fields: Any) -> PromptSrc:
    return PromptSrc.build(PromptSrcConfig(**fields), context(backbone, NAMES, "diverse", seed))


def batch(count: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(2)
    return Batch(torch.randn(count, 3, 32, 32, generator=rng), torch.arange(count) % 3)


def unit(features: Tensor) -> Any:
    found = features.detach().numpy().astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_loss_formula(backbone: Backbone) -> None:
    """In NumPy, from the four sets of features."""
    method, data = build(backbone, text_weight=3, image_weight=5, logits_weight=7), batch()
    found = method.backward(data, torch.Generator())
    images = image_tower(backbone).encode(data.inputs, method.tokens.unbind())
    z, frozen = unit(images), unit(backbone.encode_image(data.inputs))
    written = [[t.format(name) for t in SIXTY] for name in NAMES]
    fixed = unit(torch.stack([backbone.encode_text(row).mean(dim=0) for row in written]))
    _, texts = method._features(data.inputs)
    t, scale = texts.detach().numpy().astype(np.float64), backbone.logit_scale.item()
    log_p, log_q = log_softmax(scale * z @ t.T), log_softmax(scale * frozen @ fixed.T)
    expected = {
        "cross_entropy": -log_p[np.arange(4), data.labels.numpy()].mean(),
        "text": np.abs(t - fixed).mean(),
        "image": np.abs(z - frozen).mean(),
        "logits": (np.exp(log_q) * (log_q - log_p)).sum() / log_p.size,
    }
    for name, value in expected.items():
        assert found[f"train/{name}"] == pytest.approx(value, rel=1e-3), name
    total = np.dot((1, 3, 5, 7), list(expected.values()))
    assert found["train/loss"] == pytest.approx(total, rel=1e-3)


def test_divergence_vanishes_for_equal_predictions() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert divergence(logits, logits + 2).item() == pytest.approx(0, abs=1e-6)
    assert divergence(logits, -logits).item() > 0


def test_of_depth_one_it_is_coop_and_vpt(backbone: Backbone) -> None:
    """The texts of CoOp, the images of shallow VPT, with the same tokens."""
    method = build(backbone, depth=1, image_tokens=3, init_words="")
    coop = CoOp.build(ContextConfig(context_tokens=4), context(backbone))
    vpt = Vpt.build(VptConfig(tokens=3, deep=False), context(backbone))
    with torch.no_grad():
        coop.context.copy_(method.context)
        vpt.tokens.copy_(method.tokens)
        vpt.classifier = coop.scale * coop.classifier()
        torch.testing.assert_close(
            method(batch().inputs), vpt(batch().inputs), atol=1e-4, rtol=1e-5
        )
    assert set(method.trainable()) == {"context", "tokens"}


def test_every_block_has_its_own_tokens(backbone: Backbone) -> None:
    """As many as the tower has: two in the text tower, four in the image tower."""
    method = build(backbone)
    assert method.deep is not None
    assert method.deep.shape == (1, 4, 128)
    assert method.tokens.shape == (4, 4, 128)
    for tensor in (method.deep, method.tokens):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
    method.backward(batch(), torch.Generator())
    for tensor in method.trainable().values():
        assert tensor.grad is not None
        assert (tensor.grad.abs().amax(dim=-1) > 0).all()


def test_more_weight_keeps_the_features_nearer(backbone: Backbone) -> None:
    ends = []
    for weight in (0.0, 25.0):
        method = build(backbone, text_weight=weight, image_weight=weight, logits_weight=0.0)
        optimiser = torch.optim.SGD(method.trainable().values(), lr=2e-2)
        for _ in range(12):
            found = method.backward(batch(), torch.Generator())
            optimiser.step()
        ends.append((found["train/text"], found["train/image"]))
    assert ends[1][0] < ends[0][0]
    assert ends[1][1] < ends[0][1]


def test_a_training_ends_with_the_average_of_its_epochs(backbone: Backbone) -> None:
    """What is evaluated and stored is the weighted mean of the prompts after every epoch."""
    config = PromptSrcConfig(average_center=0.6, average_width=0.4, prompts="photo")
    optim = OptimConfig(lr=2e-2, epochs=3, batch_size=4, optimiser="sgd")
    task, episode = EncodedTask("tiny", "cpu", DataSource()), Episode("digits", 1, 1)
    trainer = Trainer(TrialConfig("promptsrc", "search", config, optim), task, episode)
    method, after = trainer.method, []
    for _ in range(3):
        trainer.run_epoch(validate=False)
        after.append({n: t.detach().clone() for n, t in method.trainable().items()})
    weights = np.exp([gaussian(epoch, 3, 0.6, 0.4) for epoch in (1, 2, 3)])
    weights /= weights.sum()
    tensors, metadata = trainer.artifact()
    for name, tensor in tensors.items():
        expected = sum(w * tokens[name] for w, tokens in zip(weights, after, strict=True))
        torch.testing.assert_close(tensor, expected.float(), atol=1e-6, rtol=1e-4)
        assert not torch.equal(tensor, after[-1][name])
    again = Trainer(trainer.config, task, episode)
    again.load_artifact(tensors, metadata)
    assert torch.equal(again.logits(again.val), trainer.logits(trainer.val))


def test_other_classes_keep_the_tokens(backbone: Backbone) -> None:
    method, others = build(backbone), context(backbone, OTHERS, "diverse")
    with torch.no_grad():
        method(batch().inputs)
        method.set_classes(others.classes)
        fresh = PromptSrc.build(PromptSrcConfig(), others)
        fresh.load_artifact(*method.artifact())
        assert torch.equal(method(batch().inputs), fresh(batch().inputs))


@pytest.mark.parametrize("name", ["paper", "reference", "clean"])
def test_published_settings(name: Any) -> None:
    for dataset, protocol, expected in (
        ("caltech101", "few-shot", (9, 50, 30, 30)),
        ("dtd", "few-shot", (9, 50, 45, 5)),
        ("dtd", "base-to-new", (9, 20, 15, 1)),
        ("imagenet", "cross-dataset", (3, 20, 6, 10)),
        ("imagenet", "domain-generalization", (3, 20, 6, 10)),
    ):
        facts = TaskFacts(dataset, 16, 16_000, protocol=protocol)  # type: ignore[arg-type]
        config, optim, crop_scale = PromptSrc.preset(name, facts)
        center, width = config.average_center * optim.epochs, config.average_width * optim.epochs
        assert (config.depth, optim.epochs) == expected[:2]
        assert (center, width) == pytest.approx(expected[2:])
        assert (config.text_weight, config.image_weight, config.logits_weight) == (25, 10, 1)
        assert (config.context_tokens, config.image_tokens, config.prompts) == (4, 4, "diverse")
        assert (optim.optimiser, optim.lr, optim.batch_size) == ("sgd", 2.5e-3, 4)
        assert (optim.warmup_epochs, crop_scale) == (1, 0.08)
        assert optim.weight_decay == (5e-4 if name == "reference" else 0)
    small = PromptSrc.preset(name, TaskFacts("digits", 1, 10)).optim
    assert small.epochs == (1000 if name == "clean" else 50)


def test_refuses_more_tokens_than_words(backbone: Backbone) -> None:
    with pytest.raises(MethodError, match="init_words must have at least context_tokens"):
        build(backbone, context_tokens=5)


def test_the_templates_are_sixty_different_ones() -> None:
    assert len(set(SIXTY)) == 60
    assert all(template.count("{}") == 1 for template in SIXTY)
    assert prompt_set("dtd", ("dotted",), "diverse").texts()[0][0] == "a photo of a dotted."


def values(count: int) -> list[dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [
        {"one": torch.randn(3, 2, generator=rng), "two": torch.randn(4, generator=rng)}
        for _ in range(count)
    ]


@given(
    epochs=st.integers(1, 30),
    center=st.floats(0, 1),
    width=st.floats(0.02, 2),
)
@settings(max_examples=50, deadline=None)
def test_is_the_gaussian_average_of_all_epochs(epochs: int, center: float, width: float) -> None:
    """In NumPy, with PromptSRC's weights: the density at t with mean c T and deviation s T."""
    steps = values(epochs)
    average = WeightAverage(steps[0])
    for epoch, tensors in enumerate(steps, start=1):
        average.add(tensors, gaussian(epoch, epochs, center, width))
    t = np.arange(1, epochs + 1)
    exponent = -0.5 * ((t - center * epochs) / (width * epochs)) ** 2
    weights = np.exp(exponent - exponent.max())
    weights /= weights.sum()
    for name, found in average.tensors().items():
        stacked = np.stack([tensors[name].numpy().astype(np.float64) for tensors in steps])
        expected = np.tensordot(weights, stacked, axes=1)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_weights_that_vanish_give_an_average() -> None:
    """exp(-2000) is 0 as a number: the first epoch alone is the average, to the last bit."""
    first, second = values(2)
    average = WeightAverage(first)
    assert not average.is_set
    average.add(first, -2000.0)
    assert average.is_set
    assert all(torch.equal(average.tensors()[name], first[name]) for name in first)
    average.add(second, -1000.0)
    assert all(torch.equal(average.tensors()[name], second[name]) for name in second)
    average.clear()
    assert not average.is_set


def test_continues_from_its_state() -> None:
    steps = values(4)
    whole, part = WeightAverage(steps[0]), WeightAverage(steps[0])
    for number, tensors in enumerate(steps):
        whole.add(tensors, -float(number))
        if number < 2:
            part.add(tensors, -float(number))
    again = WeightAverage(steps[0])
    again.load_state_dict(part.state_dict())
    for number in (2, 3):
        again.add(steps[number], -float(number))
    for name, tensor in whole.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert dict(whole.named_parameters()) == {}


def test_the_gaussian_has_its_top_at_the_center() -> None:
    assert gaussian(15, 20, 0.75, 0.05) == 0
    assert gaussian(16, 20, 0.75, 0.05) == pytest.approx(-0.5)  # one deviation, which is one epoch
    assert gaussian(14, 20, 0.75, 0.05) == pytest.approx(-0.5)
