"""The last layer of a text tower, in each of the places and forms that open_clip gives it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.open_clip import open_clip
from trainables.backbones.text_tower import text_projection
from trainables.data.prompts import class_features, merged, prompt_set
from trainables.load_backbone import load_backbone

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 1536, "width": 48, "heads": 2, "layers": 1}
TEXTS = ["a photo of a cat.", "two {} dogs", ""]


def small(kind: str) -> Backbone:
    """A random model with the embedded one's tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "plain":
            model = open_clip.CLIP(40, VISION, TEXT)
        elif kind == "custom":
            model = open_clip.CustomTextCLIP(40, VISION, TEXT)
        elif kind == "bias":
            model = open_clip.CustomTextCLIP(40, VISION, TEXT | {"proj_bias": True})
        elif kind == "plain-bias":
            model = open_clip.CLIP(40, VISION, TEXT | {"proj_bias": True})
        else:
            model = open_clip.CLIP(48, VISION, TEXT | {"proj_type": "none"})
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.normal_(layer.bias)
    model.eval().requires_grad_(False)
    tiny = load_backbone("tiny")
    return Backbone(kind, model, tiny.tokenizer, tiny.preprocess, "gelu", "0" * 64)


KINDS = {
    "plain": {"text_projection": (48, 40)},
    "custom": {"text.text_projection": (48, 40)},
    "bias": {"text.text_projection.weight": (40, 48), "text.text_projection.bias": (40,)},
    "plain-bias": {"text_projection.weight": (40, 48), "text_projection.bias": (40,)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_projected_states_are_the_text_features(kind: str) -> None:
    backbone = small(kind)
    before = backbone.encode_text(TEXTS)
    projection = text_projection(backbone)
    assert projection is not None
    weights = projection.weights
    assert {name: tuple(w.shape) for name, w in weights.items()} == KINDS[kind]
    states = projection.states(TEXTS)
    assert states.shape == (3, 48)
    torch.testing.assert_close(projection.project(states, weights), before)
    assert torch.equal(backbone.encode_text(TEXTS), before)  # the model itself is as it was


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_are_those_of_the_changed_backbone(kind: str) -> None:
    backbone = small(kind)
    projection = text_projection(backbone)
    assert projection is not None
    rng = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(w.shape, generator=rng) for name, w in projection.weights.items()}
    expected = backbone.changed(weights).encode_text(TEXTS)
    found = projection.project(projection.states(TEXTS), weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, backbone.encode_text(TEXTS))


def test_a_backbone_with_another_projection_sees_as_before() -> None:
    backbone = small("plain")
    weight = backbone.model.get_parameter("text_projection")
    assert backbone.changed({"text_projection": weight * 2}).sees_as(backbone)
    assert not backbone.changed({"visual.proj": backbone.visual.proj * 2}).sees_as(backbone)
    assert not small("plain").sees_as(backbone)  # equal, but not shared


def test_states_are_what_leaves_the_last_norm_at_the_end_token() -> None:
    """Recomputed with the model's own layers; texts are many, and are encoded in parts."""
    backbone = load_backbone("tiny")
    texts = [f"a photo of {number}" for number in range(300)]
    tokens = backbone.tokenizer(texts)
    model = backbone.model
    with torch.no_grad():
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    ends = x[torch.arange(300), tokens.argmax(dim=-1)]
    projection = text_projection(backbone)
    assert projection is not None
    torch.testing.assert_close(projection.states(texts), ends, rtol=1e-4, atol=1e-4)


def test_a_tower_without_the_layer_has_none() -> None:
    assert text_projection(small("none")) is None


@pytest.mark.parametrize("normalise_each", [False, True])
def test_texts_are_merged_as_class_features_are(normalise_each: bool) -> None:
    backbone = load_backbone("tiny")
    given = [["one", "uno", "eins"], ["two"], ["three", "drei"]]
    prompts = prompt_set(
        "digits", ["1", "2", "3"], "clean" if normalise_each else "paper", given=given
    )
    features = backbone.encode_text([text for row in given for text in row])
    rows = functional.normalize(features, dim=-1) if normalise_each else features
    expected = torch.stack([rows[:3].sum(0) / 3, rows[3], rows[4:].sum(0) / 2])
    torch.testing.assert_close(merged(features, prompts), expected)
    torch.testing.assert_close(class_features(backbone, prompts), expected)
