"""What can be masked, counted on the published architectures without their weights."""

import math
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from trainables.backbones.open_clip import open_clip
from trainables.backbones.registry import load_backbone
from trainables.methods.base import MethodError
from trainables.methods.layers import maskable, text_names


@cache
def model(arch: str) -> nn.Module:
    config = open_clip.get_model_config(arch)
    config["vision_cfg"]["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        return kind(**config)


def tower(arch: str) -> nn.Module:
    return model(arch).visual


@pytest.mark.parametrize(
    ("arch", "groups", "tensors", "elements"),
    [
        ("ViT-B-16", {"mhsa"}, 24, 28_311_552),
        ("ViT-B-16", {"mhsa", "patch"}, 25, 28_901_376),
        ("ViT-B-16", {"mlp"}, 24, 56_623_104),
        ("ViT-B-16", {"mhsa", "mlp", "patch", "conv"}, 49, 85_524_480),
        ("RN50", {"mhsa", "mlp", "patch", "conv"}, 59, 38_154_080),
    ],
)
def test_published_counts(arch: str, groups: set[str], tensors: int, elements: int) -> None:
    visual = tower(arch)
    names = [name for name, group in maskable(visual).items() if group in groups]
    assert len(names) == tensors
    assert sum(visual.get_parameter(name).numel() for name in names) == elements


def test_packed_size_of_the_published_masks() -> None:
    visual = tower("ViT-B-16")
    names = [name for name, group in maskable(visual).items() if group in ("mhsa", "patch")]
    size = sum(math.ceil(visual.get_parameter(name).numel() / 8) for name in names)
    assert size / 2**20 == pytest.approx(3.45, abs=0.005)


def test_resnet_groups() -> None:
    groups = maskable(tower("RN50"))
    assert Counter(groups.values()) == {"patch": 1, "conv": 54, "mhsa": 4}
    assert next(iter(groups)) == "conv1.weight"
    assert list(groups)[-4:] == [f"attnpool.{p}_proj.weight" for p in "kqvc"]


@pytest.mark.parametrize("arch", ["ViT-B-16", "RN50"])
def test_never_masked(arch: str) -> None:
    visual = tower(arch)
    for name in maskable(visual):
        assert visual.get_parameter(name).ndim >= 2
        assert "bias" not in name
    banned = {"class_embedding", "positional_embedding", "proj", "attnpool.positional_embedding"}
    assert not banned & maskable(visual).keys()


@pytest.mark.parametrize(
    ("arch", "groups"),
    [
        ("ViT-B-16-SigLIP", {"patch": 1, "mhsa": 24 + 3, "mlp": 24 + 2}),  # and an attention pool
        ("EVA02-B-16", {"patch": 1, "mhsa": 48, "mlp": 36}),  # q, k, v apart; a gate in the MLP
        ("convnext_base", {"patch": 1, "conv": 39, "mlp": 72}),
    ],
)
def test_towers_of_timm(arch: str, groups: dict[str, int]) -> None:
    visual = tower(arch)
    found = maskable(visual)
    assert Counter(found.values()) == groups
    left = [n for n, p in visual.named_parameters() if p.ndim > 1 and n not in found]
    known = ("pos_embed", "cls_token", "latent", "head.proj.weight", "head.weight")
    assert all(name.endswith(known) for name in left)


def test_a_projection_of_timm_is_not_an_mlp() -> None:
    with torch.device("meta"):
        visual = open_clip.timm_model.TimmModel(
            "test_convnext2", 64, pool="avg", proj="mlp", pretrained=False
        )
    assert not [name for name in maskable(visual) if name.startswith("head.")]
    assert any(name.startswith("head.mlp.") for name, _ in visual.named_parameters())


@pytest.mark.parametrize(
    ("arch", "first"),
    [
        ("ViT-B-16", "transformer.resblocks.0."),
        ("ViT-B-16-SigLIP", "text.transformer.resblocks.0."),
    ],
)
def test_text_towers(arch: str, first: str) -> None:
    backbone = replace(load_backbone("tiny"), model=model(arch))
    names = text_names(backbone, "mhsa")
    assert names[0] == f"{first}attn.in_proj_weight"
    assert len(names) == 24
    assert len(text_names(backbone, "all")) == 48


def test_a_text_tower_of_unknown_layers_is_refused() -> None:
    other = nn.Module()
    other.text = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 3))
    backbone = replace(load_backbone("tiny"), model=other)
    with pytest.raises(MethodError, match=r"none that can be masked .* 1 Embedding, 1 Linear"):
        text_names(backbone, "all")
    with pytest.raises(MethodError, match="has none"):
        text_names(replace(backbone, model=nn.Module()), "all")


def test_unknown_layers_are_left_alone() -> None:
    assert maskable(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))) == {}
