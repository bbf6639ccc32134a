"""A constant added to image features is exact in every kind of image tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone
from trainables.backbones.feature_offset import add_feature_offset
from trainables.backbones.layout import write_folder
from trainables.backbones.open_clip import open_clip
from trainables.backbones.specs import open_folder
from trainables.load_backbone import load_backbone

TEXT = {"context_length": 24, "vocab_size": 1536, "width": 32, "heads": 2, "layers": 1}
SMALL = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "head_width": 32}
TIMM = {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "image_size": 32}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": SMALL,
    "vit-without-class-token": SMALL | {"pool_type": "avg", "final_ln_after_pool": True},
    "vit-with-attention-pool": SMALL | {"attentional_pool": True, "attn_pooler_heads": 2},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "timm-linear": TIMM | {"timm_proj": "linear", "timm_pool": "avg"},
    "timm-linear-with-bias": TIMM | {"timm_proj": "linear", "timm_proj_bias": True},
    "timm-mlp": TIMM | {"timm_proj": "mlp", "timm_pool": "avg"},
    "timm-own-head": TIMM | {"timm_proj": "", "timm_pool": "avg"},
}


def backbone(vision: dict[str, Any], width: int = 32) -> Backbone:
    tiny = load_backbone("tiny")
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": TEXT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
        for module in model.visual.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.bias)
    model.eval().requires_grad_(False)
    made: tuple[Any, ...] = ("made", model, tiny.tokenizer, tiny.preprocess, "gelu", "0" * 64)
    return Backbone(*made, architecture=config, merges=tiny.merges)


def images() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tower", TOWERS)
def test_the_features_are_moved_by_the_constant(tower: str, tmp_path: Path) -> None:
    plain = backbone(TOWERS[tower])
    before = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    features = plain.encode_image(images())
    offset = torch.randn(32, generator=torch.Generator().manual_seed(2)) * features.std()
    found = add_feature_offset(plain, offset)
    assert found is not None
    close = {"atol": 1e-4 * float(features.abs().max()), "rtol": 0.0}
    torch.testing.assert_close(found.encode_image(images()), features + offset, **close)
    assert torch.equal(found.encode_text(["x"]), plain.encode_text(["x"]))
    assert found.fingerprint != plain.fingerprint
    assert all(torch.equal(plain.model.state_dict()[name], before[name]) for name in before)
    assert torch.equal(plain.encode_image(images()), features)
    write_folder(found, tmp_path)
    stored = open_folder(tmp_path, "stored")
    torch.testing.assert_close(stored.encode_image(images()), features + offset, **close)


@pytest.mark.parametrize("tower", ["vit-with-too-few-directions", "timm-without-projection"])
def test_a_tower_that_cannot_carry_it(tower: str) -> None:
    if tower == "timm-without-projection":
        plain = backbone(TIMM | {"timm_proj": "none", "timm_pool": "avg"}, width=512)
    else:  # 64 before the projection, 96 features
        plain = backbone(SMALL, width=96)
    offset = torch.randn(plain.encode_image(images()).shape[1])
    assert add_feature_offset(plain, offset) is None
