"""The image tower from the inside: it is the tower, for every ViT that open_clip can build."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone, BackboneError, Preprocess
from trainables.backbones.image_tower import image_tower
from trainables.backbones.open_clip import open_clip
from trainables.load_backbone import load_backbone

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 1536, "width": 32, "heads": 2, "layers": 1}


def backbone(**vision: Any) -> Backbone:
    """A random ViT whose norms and gains are not at their first, neutral values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(16, VISION | vision, TEXT)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    model.eval().requires_grad_(False)
    transform = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Backbone("random", model, load_backbone("tiny").tokenizer, transform, "gelu", "0" * 64)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


KINDS: Mapping[str, dict[str, Any]] = {
    "token": {},
    "average": {"pool_type": "avg"},
    "average-then-norm": {"pool_type": "avg", "final_ln_after_pool": True},
    "token-then-norm": {"final_ln_after_pool": True},
    "no-first-norm": {"no_ln_pre": True},
    "patch-dropout": {"patch_dropout": 0.5},
    "attention-pool": {"attentional_pool": True, "attn_pooler_heads": 2},
    "layer-scale": {"ls_init_value": 0.1},
    "custom-blocks": {"qk_norm": True, "scale_fc": True},
    "sin-cos": {"pos_embed_type": "sin_cos_2d"},
    "tokens-too": {"output_tokens": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_own_tokens_it_is_the_tower(kind: str) -> None:
    found = backbone(**KINDS[kind])
    with torch.no_grad():
        expected = found.visual(images())
        features = image_tower(found).encode(images())
    if kind == "tokens-too":
        expected = expected[0]
    assert torch.equal(features, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("deep", [False, True])
def test_own_tokens_are_seen_and_do_not_stay(kind: str, deep: bool) -> None:
    tower = image_tower(backbone(**KINDS[kind]))
    own = torch.randn(3 if deep else 1, 5, tower.width, generator=torch.Generator().manual_seed(2))
    own.requires_grad_()
    features = tower.encode(images(), own.unbind())
    assert features.shape == tower.encode(images()).shape
    assert not torch.allclose(features, tower.encode(images()), atol=1e-2)
    features.square().sum().backward()
    assert (own.grad.abs().amax(dim=-1) > 0).all()
    # Their order makes no difference, their number does not need to be the same everywhere.
    turned = tower.encode(images(), own.flip(1).unbind())
    torch.testing.assert_close(turned, features, atol=1e-4, rtol=1e-4)
    ragged = [tokens[: 1 + place] for place, tokens in enumerate(own)]
    assert tower.encode(images(), ragged).isfinite().all()


@pytest.mark.parametrize("deep", [False, True])
def test_the_blocks_see_what_the_paper_says(deep: bool) -> None:
    """The same, block by block, written out for a plain tower with a class token."""
    found = backbone()
    tower, visual = image_tower(found), found.visual
    own = torch.randn(3 if deep else 1, 5, tower.width, generator=torch.Generator().manual_seed(2))
    x = visual.conv1(images()).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(4, 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, own[0].expand(4, -1, -1)], dim=1))
    for place, block in enumerate(visual.transformer.resblocks):
        if deep and place:
            x[:, 17:] = own[place]
        x = block(x)
    expected = visual.ln_post(x)[:, 0] @ visual.proj
    torch.testing.assert_close(tower.encode(images(), own.unbind()), expected)


def test_blocks_whose_first_axis_is_the_sequence() -> None:
    found = backbone()
    expected = image_tower(found).encode(images(), [torch.ones(2, 32)])
    transformer = found.visual.transformer
    transformer.batch_first = False
    for block in transformer.resblocks:
        block.attn.batch_first = False
    torch.testing.assert_close(
        image_tower(found).encode(images(), [torch.ones(2, 32)]), expected, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(image_tower(found).encode(images()), found.visual(images()))


def test_refuses_more_tokens_than_blocks() -> None:
    with pytest.raises(ValueError, match="at most 3, one per block, got 4"):
        image_tower(backbone()).encode(images(), [torch.zeros(1, 32)] * 4)


def test_refuses_other_towers() -> None:
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}
    with pytest.raises(BackboneError, match="kind 'resnet'"):
        image_tower(backbone(**resnet))
    timm = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear"}
    with pytest.raises(BackboneError, match="kind 'other'"):
        image_tower(backbone(**timm))
    with pytest.raises(BackboneError, match="attn_pool_contrastive"):  # open_clip: untested
        image_tower(backbone(attentional_pool="parallel", attn_pooler_heads=2))
    other = backbone()
    other.visual.adapter = nn.Linear(2, 2)
    with pytest.raises(BackboneError, match="parts adapter, conv1"):
        image_tower(other)
    other = backbone()
    other.visual.transformer.norm = nn.LayerNorm(32)
    with pytest.raises(BackboneError, match="more than blocks"):
        image_tower(other)
