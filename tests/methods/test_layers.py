"""What can be masked, counted on the published architectures without their weights."""

import math
from collections import Counter
from functools import cache

import pytest
import torch
from torch import nn

from trainables.backbones.open_clip import open_clip
from trainables.methods.layers import maskable


@cache
def tower(arch: str) -> nn.Module:
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config(arch)).visual


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


def test_unknown_layers_are_left_alone() -> None:
    assert maskable(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))) == {}
