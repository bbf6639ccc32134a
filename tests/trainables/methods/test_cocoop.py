"""CoCoOp: its logits image by image, the meta-net, parts, other classes."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.trainables.methods.named_classes import NAMES, OTHERS, context
from trainables.backbones import text_tower
from trainables.backbones.base import Backbone
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    TaskFacts,
)
from trainables.methods.cocoop import CoCoOp, CoCoOpConfig


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(5, 128, generator=torch.Generator().manual_seed(0))


def build(backbone: Backbone, config: CoCoOpConfig, seed: int = 0) -> CoCoOp:
    return CoCoOp.build(config, context(backbone, seed=seed))


def by_hand(
    method: CoCoOp, backbone: Backbone, images: torch.Tensor, names: tuple[str, ...]
) -> torch.Tensor:
    """One image and one class at a time, through the model's modules."""
    model, rows = backbone.model, []
    weights = method.artifact()[0]
    for image in images:
        unit = image / image.norm()
        hidden = (weights["narrow.weight"] @ unit + weights["narrow.bias"]).clamp_min(0)
        shift = weights["widen.weight"] @ hidden + weights["widen.bias"]
        context = weights["context"] + shift
        cosines = []
        for name in names:
            ids = backbone.tokenizer([f"{name}."])[0]
            ids = ids[: int(ids.argmax()) + 1]
            fixed = model.token_embedding(ids)
            row = torch.cat([fixed[:1], context, fixed[1:]])
            size = len(row)
            inner = model.transformer(
                (row + model.positional_embedding[:size])[None],
                attn_mask=model.attn_mask[:size, :size],
            )
            text = model.ln_final(inner)[0, -1] @ model.text_projection
            cosines.append(functional.cosine_similarity(unit, text, dim=0))
        rows.append(torch.stack(cosines))
    return backbone.logit_scale * torch.stack(rows)


@pytest.mark.parametrize("at_once", [1, 2, 7, 1000])
def test_logits_formula_in_any_parts(
    backbone: Backbone, images: torch.Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tower, "AT_ONCE", at_once)
    method = build(backbone, CoCoOpConfig())
    expected = by_hand(method, backbone, images, NAMES)
    with torch.no_grad():
        torch.testing.assert_close(method(images), expected, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(method(images).detach(), expected, atol=2e-4, rtol=1e-5)


def test_parts_have_the_gradient_of_the_whole(
    backbone: Backbone, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(images, torch.tensor([0, 1, 2, 0, 1]))
    gradients = []
    for at_once in (1000, 2):
        monkeypatch.setattr(text_tower, "AT_ONCE", at_once)
        method = build(backbone, CoCoOpConfig())
        method.backward(batch, torch.Generator())
        gradients.append({name: tensor.grad for name, tensor in method.trainable().items()})
    for name, whole in gradients[0].items():
        assert whole.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], whole, atol=1e-5, rtol=1e-3)


def test_without_a_shift_it_is_zero_shot(backbone: Backbone, images: torch.Tensor) -> None:
    """Its words are those of «a photo of a {}.»; what differs at the start is the meta-net."""
    method = build(backbone, CoCoOpConfig())
    texts = backbone.encode_text([f"a photo of a {name}." for name in NAMES])
    cosine = functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    with torch.no_grad():
        assert not torch.allclose(method(images), backbone.logit_scale * cosine, atol=1e-3)
        method.widen.weight.zero_()
        method.widen.bias.zero_()
        torch.testing.assert_close(
            method(images), backbone.logit_scale * cosine, atol=2e-4, rtol=1e-5
        )


def test_meta_net_is_drawn_as_torch_draws_and_from_the_seed(backbone: Backbone) -> None:
    method, same, other = (build(backbone, CoCoOpConfig(), seed) for seed in (0, 0, 1))
    assert method.narrow.weight.shape == (8, 128)  # d / 16
    assert method.widen.weight.shape == (128, 8)
    for layer, inputs in ((method.narrow, 128), (method.widen, 8)):
        bound = 1 / math.sqrt(inputs)
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert 0 < layer.bias.abs().max() <= bound
    assert torch.equal(method.narrow.weight, same.narrow.weight)
    assert not torch.equal(method.narrow.weight, other.narrow.weight)


def test_context_and_meta_net_stay_for_other_classes(
    backbone: Backbone, images: torch.Tensor
) -> None:
    method = build(backbone, CoCoOpConfig())
    method.set_classes(context(backbone, OTHERS).classes)
    with torch.no_grad():
        torch.testing.assert_close(
            method(images), by_hand(method, backbone, images, OTHERS), atol=2e-4, rtol=1e-5
        )
    assert method.linear_head() is None  # every image has its own


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (CoCoOpConfig(context_tokens=30), "positions"),
        (CoCoOpConfig(context_tokens=3), "init_words"),
    ],
)
def test_refuses(backbone: Backbone, config: CoCoOpConfig, error: str) -> None:
    with pytest.raises(MethodError, match=error):
        build(backbone, config)


def test_refuses_features_alone(backbone: Backbone) -> None:
    with pytest.raises(MethodError, match="bundle"):
        CoCoOp.build(
            CoCoOpConfig(), BuildContext(backbone, ClassTexts(torch.zeros(2, 128)), Schedule(()))
        )


def test_presets() -> None:
    config, optim, crop_scale = CoCoOp.preset("paper", TaskFacts("digits", 16, 160))
    assert (config.context_tokens, config.init_words, config.reduction) == (4, "a photo of a", 16)
    assert (optim.optimiser, optim.lr, optim.epochs, optim.batch_size) == ("sgd", 2e-3, 10, 1)
    assert (optim.warmup_epochs, optim.weight_decay, crop_scale) == (1, 0, 1)
    reference = CoCoOp.preset("reference", TaskFacts("digits", 16, 160))
    assert reference == (config, replace(optim, weight_decay=5e-4), 0.08)
