"""MaPLe: both towers' prompts against CoOp, VPT and a plain statement, recipes, what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainables.methods.named_classes import NAMES, OTHERS, context, images
from trainables.backbones.base import Backbone
from trainables.backbones.image_tower import image_tower
from trainables.methods.base import Batch, MethodError, TaskFacts
from trainables.methods.context import ContextConfig
from trainables.methods.coop import CoOp
from trainables.methods.maple import Maple, MapleConfig
from trainables.methods.vpt import Vpt, VptConfig


def build(backbone: Backbone, seed: int = 0, **fields: Any) -> Maple:
    return Maple.build(MapleConfig(**fields), context(backbone, seed=seed))


def text_features(backbone: Backbone, contexts: list[Tensor], fixed: str) -> Tensor:
    """One class at a time, block by block: the tokens stand at places 1 to m."""
    model, found = backbone.model, []
    for name in NAMES:
        ids = backbone.tokenizer([f"{fixed}{name}."])[0]
        end = int(ids.argmax())
        row = model.token_embedding(ids[: end + 1])
        row = torch.cat([row[:1], contexts[0], row[1:]])
        m, length = len(contexts[0]), len(row)
        x = (row + model.positional_embedding[:length])[None]
        for number, block in enumerate(model.transformer.resblocks):
            if 0 < number < len(contexts):
                x = torch.cat([x[:, :1], contexts[number][None], x[:, 1 + m :]], dim=1)
            x = block(x, attn_mask=model.attn_mask[:length, :length])
        found.append(model.ln_final(x)[0, -1] @ model.text_projection)
    return torch.stack(found)


@pytest.mark.parametrize("depth", [1, 2, 9])
@pytest.mark.parametrize(("tokens", "words", "fixed"), [(2, "a photo of a", "of a "), (3, "", "")])
def test_logits(backbone: Backbone, depth: int, tokens: int, words: str, fixed: str) -> None:
    method = build(backbone, context_tokens=tokens, depth=depth, init_words=words)
    contexts = method.contexts()
    assert len(contexts) == min(depth, 2), "the embedded text tower has two blocks"
    layers = zip(method.weight, method.bias, contexts, strict=True)
    own = [p @ weight.T + bias for weight, bias, p in layers]
    with torch.no_grad():
        features = image_tower(backbone).encode(images(), own)
        texts = text_features(backbone, contexts, fixed)
        cosine = functional.cosine_similarity(features[:, None], texts[None], dim=-1)
        torch.testing.assert_close(
            method(images()), backbone.logit_scale * cosine, atol=1e-3, rtol=1e-4
        )


def test_of_depth_one_it_is_coop_and_vpt(backbone: Backbone) -> None:
    """The texts of CoOp with the same context, the images of shallow VPT with the coupled one."""
    method = build(backbone, context_tokens=3, depth=1, init_words="")
    coop = CoOp.build(ContextConfig(context_tokens=3), context(backbone))
    vpt = Vpt.build(VptConfig(tokens=3, deep=False), context(backbone))
    with torch.no_grad():
        coop.context.copy_(method.context)
        vpt.tokens.copy_(method.image_tokens()[0])
        vpt.classifier = coop.scale * coop.classifier()
        torch.testing.assert_close(method(images()), vpt(images()), atol=1e-4, rtol=1e-5)


def test_without_coupling_the_images_ignore_the_texts_tokens(backbone: Backbone) -> None:
    method = build(backbone)
    with torch.no_grad():
        method.weight.zero_()
        before = method.image_tokens()
        method.context.add_(1)
        for one, other, bias in zip(before, method.image_tokens(), method.bias, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, bias.expand(2, -1))


def test_the_texts_start_as_the_template(backbone: Backbone) -> None:
    """The first words are learned, the others stay, whatever is learned."""
    method = build(backbone, depth=1)
    assert method.context.shape == (2, 128)
    with torch.no_grad():
        found = method._texts(method.contexts())
    written = backbone.encode_text([f"a photo of a {name}." for name in NAMES])
    expected = functional.normalize(written, dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_tokens_are_trained_through_both_towers(backbone: Backbone) -> None:
    """The gradient of P_i is the sum of both towers' share, by a central difference."""
    method = build(backbone, seed=1)
    batch = Batch(images(), torch.tensor([0, 1, 2, 0]))
    method.backward(batch, torch.Generator())
    for tensor in method.trainable().values():
        assert tensor.grad is not None
        slope = tensor.grad.norm()
        assert slope > 0
        way, losses = tensor.grad / slope, []
        with torch.no_grad():
            for step in (1e-2, -2e-2, 1e-2):
                tensor.add_(way, alpha=step)
                losses.append(functional.cross_entropy(method(images()), batch.labels).item())
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(slope.item(), rel=0.05)


def test_first_values(backbone: Backbone) -> None:
    """Random tokens of N(0, 0.02); couplings as PyTorch's linear layers, alike after the first."""
    method = build(backbone, context_tokens=8, init_words="")
    assert method.deep is not None
    for tokens in (method.context, method.deep):
        assert tokens.std().item() == pytest.approx(0.02, rel=0.1)
    bound = 128**-0.5
    assert 0.95 * bound < method.weight.abs().max() <= bound
    same, other = (build(backbone, seed, context_tokens=8, init_words="") for seed in (0, 1))
    for name, tensor in method.trainable().items():
        assert torch.equal(tensor, same.trainable()[name])
        assert not torch.equal(tensor, other.trainable()[name])


def test_other_classes_keep_the_tokens(backbone: Backbone) -> None:
    method = build(backbone)
    method(images())
    learned = {name: tensor.clone() for name, tensor in method.learned().items()}
    method.set_classes(context(backbone, OTHERS).classes)
    fresh = Maple.build(MapleConfig(), context(backbone, OTHERS))
    fresh.load_artifact(learned, method.metadata())
    with torch.no_grad():
        assert method(images()).shape == (4, 2)
        assert torch.equal(method(images()), fresh(images()))


def test_what_is_remembered_is_never_stale(backbone: Backbone) -> None:
    method = build(backbone)
    with torch.no_grad():
        before = method(images())
        for tensor in (method.context, method.deep):
            assert tensor is not None
            tensor.add_(0.5)
            assert not torch.equal(method(images()), before)
            before = method(images())
    torch.testing.assert_close(method(images()).detach(), before, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["paper", "reference", "clean"])
def test_published_settings(name: Any) -> None:
    for protocol, lr, epochs, depth in (
        ("few-shot", 3.5e-3, 5, 9),
        ("base-to-new", 3.5e-3, 5, 9),
        ("cross-dataset", 2.6e-3, 2, 3),
    ):
        facts = TaskFacts("imagenet", 16, 16_000, protocol=protocol)  # type: ignore[arg-type]
        config, optim, crop_scale = Maple.preset(name, facts)
        assert config == MapleConfig("photo", 2, depth, "a photo of a")
        assert (optim.optimiser, optim.lr, optim.epochs) == ("sgd", lr, epochs)
        assert (optim.batch_size, optim.warmup_epochs, crop_scale) == (4, 1, 0.08)
        assert optim.weight_decay == (5e-4 if name == "reference" else 0)
    small = Maple.preset(name, TaskFacts("digits", 4, 40)).optim
    assert small.epochs == (200 if name == "clean" else 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_tokens": 5}, "init_words must have at least context_tokens"),
        ({"context_tokens": 20, "init_words": ""}, "positions"),
    ],
)
def test_refuses(backbone: Backbone, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        build(backbone, **fields)


def test_refuses_long_names_with_the_fixed_words(backbone: Backbone) -> None:
    """The words between context and name take places, too."""
    with pytest.raises(MethodError, match="positions"):
        build(backbone).set_classes(context(backbone, ("x y z " * 9,)).classes)
