"""CoOp: its logits, its start, what is remembered between steps, other classes, presets."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.trainables.methods.named_classes import NAMES, OTHERS, context
from trainables.backbones.base import Backbone
from trainables.backbones.bundle import FeatureBackbone
from trainables.data.prompts import PromptSet
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodError,
    Schedule,
    TaskFacts,
)
from trainables.methods.context import ContextConfig
from trainables.methods.coop import CoOp

WORDS = ContextConfig(context_tokens=4, init_words="a photo of a", prompts="photo")
RNG = torch.Generator()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(6, 128, generator=torch.Generator().manual_seed(0))


def build(backbone: Backbone, config: ContextConfig, seed: int = 0) -> CoOp:
    return CoOp.build(config, context(backbone, seed=seed))


def zero_shot(backbone: Backbone, images: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    texts = backbone.encode_text([f"a photo of a {name}." for name in names])
    cosine = functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    return backbone.logit_scale * cosine


def step(method: CoOp, images: torch.Tensor) -> None:
    labels = torch.arange(len(images)) % len(NAMES)
    method.backward(Batch(images, labels), RNG)
    with torch.no_grad():
        method.context -= 2.0 * method.context.grad


def logits(method: CoOp, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return method(images)


def afresh(method: CoOp, images: torch.Tensor) -> torch.Tensor:
    return method(images).detach()  # with gradients on nothing is remembered


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_logits_formula(backbone: Backbone, images: torch.Tensor, own: bool, position: str) -> None:
    """By hand, through the model's modules: embeddings put together one class at a time."""
    method = build(
        backbone,
        ContextConfig(context_tokens=3, class_specific=own, class_position=position),  # type: ignore[arg-type]
    )
    model, texts = backbone.model, []
    for number, name in enumerate(NAMES):
        context = method.context.detach()[number] if own else method.context.detach()
        ids = backbone.tokenizer([f"{name}."])[0]
        end = int(ids.argmax())
        start, body, stop, last = model.token_embedding(ids).split([1, end - 2, 1, 1, 23 - end])[:4]
        parts = {
            "end": (start, context, body, stop, last),
            "middle": (start, context[:1], body, context[1:], stop, last),
            "front": (start, body, context, stop, last),
        }[position]
        row = torch.cat(parts)
        inner = row + model.positional_embedding[: len(row)]
        inner = model.transformer(inner[None], attn_mask=model.attn_mask[: len(row), : len(row)])
        texts.append(model.ln_final(inner)[0, -1] @ model.text_projection)
    cosine = functional.cosine_similarity(images[:, None], torch.stack(texts)[None], dim=-1)
    torch.testing.assert_close(
        logits(method, images), backbone.logit_scale * cosine, atol=2e-4, rtol=1e-5
    )


def test_from_words_it_starts_as_the_zero_shot_model(
    backbone: Backbone, images: torch.Tensor
) -> None:
    """Of that template; each class's own context as well."""
    for config in (WORDS, replace(WORDS, class_specific=True)):
        torch.testing.assert_close(
            logits(build(backbone, config), images),
            zero_shot(backbone, images, NAMES),
            atol=2e-4,
            rtol=1e-5,
        )


def test_a_random_start_is_of_its_seed(backbone: Backbone) -> None:
    one, same, other = (build(backbone, ContextConfig(), seed).context for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@given(actions=st.lists(st.sampled_from(["step", "load", "state", "look"]), max_size=6))
@settings(max_examples=25, deadline=None)
def test_what_is_remembered_is_never_stale(
    backbone: Backbone, images: torch.Tensor, actions: list[str]
) -> None:
    method = build(backbone, WORDS)
    donor = build(backbone, WORDS)
    step(donor, images)
    for action in actions:
        logits(method, images)  # remembers
        match action:
            case "step":
                step(method, images)
            case "load":
                method.load_artifact(*donor.artifact())
            case "state":
                method.load_state_dict(donor.state_dict())
        torch.testing.assert_close(
            logits(method, images), afresh(method, images), atol=1e-4, rtol=1e-5
        )


def test_remembers(backbone: Backbone, images: torch.Tensor) -> None:
    method = build(backbone, WORDS)
    with torch.no_grad():
        assert method.classifier() is method.classifier()


def test_the_context_stays_for_other_classes(backbone: Backbone, images: torch.Tensor) -> None:
    method = build(backbone, WORDS)
    method.set_classes(context(backbone, OTHERS).classes)
    expected = zero_shot(backbone, images, OTHERS)
    torch.testing.assert_close(logits(method, images), expected, atol=2e-4, rtol=1e-5)
    trained = build(backbone, WORDS)
    step(trained, images)
    trained.set_classes(context(backbone, OTHERS).classes)
    assert not torch.allclose(logits(trained, images), expected, atol=1e-2)
    torch.testing.assert_close(
        logits(trained, images), afresh(trained, images), atol=1e-4, rtol=1e-5
    )


def test_contexts_of_classes_fall_back_to_zero_shot(
    backbone: Backbone, images: torch.Tensor
) -> None:
    method = build(backbone, ContextConfig(class_specific=True))
    step(method, images)
    method.set_classes(context(backbone, OTHERS).classes)
    torch.testing.assert_close(
        logits(method, images), zero_shot(backbone, images, OTHERS), atol=2e-4, rtol=1e-5
    )


def test_refuses_other_classes_without_room_or_names(backbone: Backbone) -> None:
    method = build(backbone, ContextConfig())
    with pytest.raises(MethodError, match="positions"):
        method.set_classes(context(backbone, ("one thousand and one",)).classes)
    with pytest.raises(MethodError, match="bundle"):
        method.set_classes(ClassTexts(torch.zeros(2, 128)))


def test_given_texts_are_left_for_the_names(backbone: Backbone, images: torch.Tensor) -> None:
    prompts = PromptSet(NAMES, (), given=(("x", "y"), ("z",), ("u",)))
    context = BuildContext(backbone, ClassTexts(torch.zeros(3, 128), prompts), Schedule(()))
    found = logits(CoOp.build(WORDS, context), images)
    torch.testing.assert_close(found, zero_shot(backbone, images, NAMES), atol=2e-4, rtol=1e-5)


def test_head_says_what_forward_says(backbone: Backbone, images: torch.Tensor) -> None:
    method = build(backbone, ContextConfig())
    found = functional.normalize(images, dim=-1) @ method.linear_head().weight.T
    torch.testing.assert_close(found, logits(method, images), atol=1e-4, rtol=1e-5)
    assert not method.linear_head().weight.requires_grad


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (ContextConfig(context_tokens=30), "context_tokens="),
        (ContextConfig(context_tokens=2, init_words="a photo of a"), "init_words"),
    ],
)
def test_refuses(backbone: Backbone, config: ContextConfig, error: str) -> None:
    with pytest.raises(MethodError, match=error):
        build(backbone, config)


def test_refuses_a_backbone_without_a_text_tower(backbone: Backbone) -> None:
    model = torch.nn.Module()
    model.logit_scale = torch.nn.Parameter(torch.zeros(()), requires_grad=False)
    bare = FeatureBackbone(
        "bundle:x", model, backbone.tokenizer, backbone.preprocess, "none", "0", dimension=128
    )
    with pytest.raises(MethodError, match=r"text tower.*bundle:x"):
        CoOp.build(WORDS, BuildContext(bare, context(backbone).classes, Schedule(())))


@pytest.mark.parametrize(
    ("dataset", "shots", "epochs"),
    [("digits", 1, 50), ("digits", 2, 100), ("digits", 8, 200), ("imagenet", 16, 50)],
)
def test_paper_preset(dataset: str, shots: int, epochs: int) -> None:
    config, optim, crop_scale = CoOp.preset("paper", TaskFacts(dataset, shots, shots))
    assert (config.context_tokens, config.init_words, config.class_specific) == (16, "", False)
    assert (optim.optimiser, optim.lr, optim.epochs, optim.batch_size) == ("sgd", 2e-3, epochs, 32)
    assert (optim.warmup_epochs, optim.warmup_lr, optim.weight_decay) == (1, 1e-5, 0)
    assert crop_scale == 1
    reference = CoOp.preset("reference", TaskFacts(dataset, shots, shots))
    assert (reference.optim.weight_decay, reference.crop_scale) == (5e-4, 0.08)
