"""The parts of the text tower give the features of the whole one, and a gradient."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainables.backbones import text_tower as module
from trainables.backbones.base import Backbone, BackboneError, Preprocess
from trainables.backbones.bundle import FeatureBackbone
from trainables.backbones.open_clip import open_clip
from trainables.backbones.text_tower import DeepTokens, TextTower, text_tower
from trainables.load_backbone import load_backbone

TEXT = {"context_length": 24, "vocab_size": 1536, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}


def random_backbone(kind: str, **text: object) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(open_clip, kind)(16, VISION, TEXT | text)
        for parameter in model.parameters():  # a fresh projection's bias is zero
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    model.eval().requires_grad_(False)
    tokenizer = load_backbone("tiny").tokenizer
    none = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Backbone(kind, model, tokenizer, none, "gelu", "0" * 64)


BACKBONES = {
    "tiny": lambda: load_backbone("tiny"),
    "custom": lambda: random_backbone("CustomTextCLIP"),
    "linear projection": lambda: random_backbone("CustomTextCLIP", proj_bias=True),
    "no projection": lambda: random_backbone("CLIP", proj_type="none"),
    "sees all": lambda: random_backbone("CLIP", no_causal_mask=True),
}


@pytest.fixture(params=BACKBONES, scope="module")
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return BACKBONES[request.param]()


def encoded(tower: TextTower, backbone: Backbone, texts: list[str]) -> Tensor:
    ids = backbone.tokenizer(texts)
    return tower.encode(tower.embed(ids), tower.ends(ids))


TEXTS = st.lists(st.text(st.characters(codec="ascii"), max_size=60), min_size=1, max_size=4)


@given(texts=TEXTS)
@settings(max_examples=25, deadline=None)
def test_is_the_tower_of_encode_text(backbone: Backbone, texts: list[str]) -> None:
    found = encoded(text_tower(backbone), backbone, texts)
    torch.testing.assert_close(found, backbone.encode_text(texts), atol=2e-5, rtol=1e-4)


def test_a_causal_tower_reads_no_further_than_the_longest_text() -> None:
    backbone = load_backbone("tiny")
    tower = text_tower(backbone)
    ids = backbone.tokenizer(["a", "a photo of a"])
    assert tower.embed(ids).shape == (2, 6, tower.width)
    seeing = dataclasses.replace(tower, causal=False)
    assert seeing.embed(ids).shape == (2, tower.places, tower.width)
    torch.testing.assert_close(
        seeing.encode(seeing.embed(ids), seeing.ends(ids)),
        tower.encode(tower.embed(ids), tower.ends(ids)),
        atol=1e-5,
        rtol=1e-4,
    )


def gradient(tower: TextTower, embeddings: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    features = tower.encode(leaf, ends)
    (found,) = torch.autograd.grad((features * features.detach().cos()).sum(), leaf)
    return features.detach(), found


def test_parts_change_neither_features_nor_gradient(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = text_tower(backbone)
    ids = backbone.tokenizer([f"a photo of {n}" for n in ("one", "two", "three", "four", "five")])
    embeddings, ends = tower.embed(ids), tower.ends(ids)
    state = torch.get_rng_state()
    whole = gradient(tower, embeddings, ends)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    parts = gradient(tower, embeddings, ends)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert whole[1].abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(tower.encode(embeddings, ends), whole[0], atol=1e-5, rtol=1e-4)


def test_gradient_is_the_slope_of_the_features() -> None:
    backbone = random_backbone("CLIP")
    backbone.model.double()
    tower = text_tower(backbone)
    rng = torch.Generator().manual_seed(1)
    embeddings = 0.1 * torch.randn(1, 3, 32, dtype=torch.float64, generator=rng)
    assert torch.autograd.gradcheck(
        lambda x: tower.encode(x, torch.tensor([2])), embeddings.requires_grad_()
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [({"pool_type": "last"}, "'last'"), ({"embed_cls": True}, "class token")],
)
def test_refuses_other_towers(text: dict[str, object], reason: str) -> None:
    with pytest.raises(BackboneError, match=reason):
        text_tower(random_backbone("CustomTextCLIP", **text))


def test_refuses_a_backbone_without_towers() -> None:
    model = torch.nn.Module()
    model.logit_scale = torch.nn.Parameter(torch.zeros(()))
    tiny = load_backbone("tiny")
    bare = FeatureBackbone("x", model, tiny.tokenizer, tiny.preprocess, "none", "0", dimension=4)
    with pytest.raises(BackboneError, match=r"has no token_embedding.*taskres"):
        text_tower(bare)


def deep_tokens(tower: TextTower, count: int, sets: int) -> DeepTokens:
    """Two tokens per text, at places 1 and 2, for some of the blocks after the first."""
    rng = torch.Generator().manual_seed(2)
    own = [torch.randn(2, tower.width, generator=rng).requires_grad_() for _ in range(sets)]
    return DeepTokens(torch.tensor([[1, 2]]).expand(count, -1), own)


@pytest.mark.parametrize("sets", [0, 1, 2])
@pytest.mark.parametrize("batch_first", [True, False])
def test_deep_tokens_replace_the_outputs_before_their_block(sets: int, batch_first: bool) -> None:
    """By hand, text by text, through the model's blocks."""
    backbone = random_backbone("CLIP", layers=3)
    tower, model = text_tower(backbone), backbone.model
    ids = backbone.tokenizer(["a photo of one", "a photo of a longer name"])
    embeddings, ends = tower.embed(ids), tower.ends(ids)
    deep, expected = deep_tokens(tower, 2, sets), []
    for row, end in zip(embeddings, ends.tolist(), strict=True):
        x = (row + model.positional_embedding[: len(row)])[None]
        for number, block in enumerate(model.transformer.resblocks):
            if 1 <= number <= sets:
                x = torch.cat([x[:, :1], deep.own[number - 1][None], x[:, 3:]], dim=1)
            x = block(x, attn_mask=model.attn_mask[: len(row), : len(row)])
        expected.append(model.ln_final(x)[0, end] @ model.text_projection)
    if not batch_first:
        model.transformer.batch_first = False
        for block in model.transformer.resblocks:
            block.attn.batch_first = False
    found = tower.encode(embeddings, ends, deep)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert sets > 0 or torch.equal(found, tower.encode(embeddings, ends, None))


def test_parts_change_no_gradient_of_deep_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = random_backbone("CLIP", layers=3)
    tower = text_tower(backbone)
    ids = backbone.tokenizer([f"a photo of {name}" for name in ("one", "two", "three")])
    found = []
    for size in (128, 2):
        monkeypatch.setattr(module, "AT_ONCE", size)
        deep = deep_tokens(tower, 3, 2)
        features = tower.encode(tower.embed(ids), tower.ends(ids), deep)
        (features * features.detach().cos()).sum().backward()
        found.append([tensor.grad for tensor in deep.own])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
