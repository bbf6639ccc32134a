"""Maskable layers, counted on the published architectures without their weights."""

import math
import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from trainables.backbones.open_clip import open_clip
from trainables.load_backbone import load_backbone
from trainables.methods.base import MethodError
from trainables.methods.masking.layers import (
    Masked,
    image_names,
    maskable,
    text_names,
    unclassified,
)


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


@pytest.mark.parametrize(
    ("arch", "masked", "patch_embedding", "tensors", "elements"),
    [
        ("ViT-B-16", "all", False, 49, 85_524_480),
        ("ViT-B-16", "all", True, 49, 85_524_480),
        ("ViT-B-16", "dynamic", False, 49, 85_524_480),
        ("ViT-B-16", "mhsa", False, 24, 28_311_552),
        ("ViT-B-16", "mhsa", True, 25, 28_901_376),
        ("ViT-B-16", "mlp", False, 24, 56_623_104),
        ("RN50", "all", False, 59, 38_154_080),
    ],
)
def test_what_each_variant_masks(
    arch: str, masked: Masked, patch_embedding: bool, tensors: int, elements: int
) -> None:
    """PMT masks all convolutions and fully connected layers, as the released code does; AMT only
    attention in the paper, the first convolution too in the code."""
    backbone = replace(load_backbone("tiny"), name=arch, model=model(arch))
    names = image_names(backbone, masked, patch_embedding)
    sizes = [backbone.visual.get_parameter(name).numel() for name in names]
    assert (len(names), sum(sizes)) == (tensors, elements)


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
    with pytest.raises(
        MethodError, match=r"0\.weight \(Linear\) \(its layers are 1 Embedding, 1 Linear"
    ):
        text_names(backbone, "all")
    with pytest.raises(MethodError, match="has none"):
        text_names(replace(backbone, model=nn.Module()), "all")


def test_heads_and_position_biases_are_no_mlp() -> None:
    """Of a trunk that ends with an attention pool, and of attention with a network for the bias."""
    for arch, mlps in (("PE-Core-T-16-384", 12 + 1), ("vit_relpos_medium_patch16_cls_224", 12)):
        visual = tower(arch)
        found = [name for name, group in maskable(visual).items() if group == "mlp"]
        assert len(found) == 2 * mlps
        assert all(name.split(".")[-3] == "mlp" for name in found)
        assert not any("head" in name or "rel_pos" in name for name in maskable(visual))
        assert not unclassified(visual)


def test_patch_merging_is_neither_attention_nor_mlp() -> None:
    visual = tower("swin_base_patch4_window7_224")
    assert Counter(maskable(visual).values()) == {"patch": 1, "mhsa": 48, "mlp": 48}
    assert not unclassified(visual)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("levit_128", "trunk.stages.0.blocks.0.attn.qkv.linear.weight (Linear)"),
        ("convit_tiny", "trunk.blocks.0.attn.qk.weight (Linear)"),
        ("sequencer2d_s", "trunk.stages.0.blocks.0.rnn_tokens.rnn_v.weight_ih_l0 (LSTM)"),
    ],
)
def test_a_tower_with_layers_of_an_unknown_kind_is_refused(name: str, first: str) -> None:
    """Although some of its layers are known."""
    other = nn.Module()
    with torch.device("meta"):
        other.visual = open_clip.timm_model.TimmModel(name, 64, pool="avg", pretrained=False)
    backbone = replace(load_backbone("tiny"), model=other)
    for masked in ("mhsa", "mlp", "all"):
        with pytest.raises(MethodError, match=rf"{re.escape(first)}.* more \(its layers are"):
            image_names(backbone, masked, False)  # type: ignore[arg-type]
