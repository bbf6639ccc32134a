"""A small world for methods: two backbones, and a few-shot task that a few steps can learn."""

import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone, Preprocess
from trainables.backbones.open_clip import open_clip
from trainables.data.prompts import PromptVariant, class_features, prompt_set
from trainables.load_backbone import load_backbone
from trainables.methods.base import ClassTexts

TRANSFORM = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize_mode="squash")
CLASSES = ("red_square", "blue_cross", "green_star", "black_cross")


@dataclass(frozen=True)
class World:
    """Backbone and task for a method."""

    kind: str
    backbone: Backbone
    images: Tensor
    labels: Tensor
    image_features: Tensor
    _known: dict[PromptVariant, ClassTexts] = field(default_factory=dict, init=False)

    def classes(self, variant: PromptVariant = "paper") -> ClassTexts:
        if variant not in self._known:
            prompts = prompt_set("imagenet", CLASSES, variant)
            self._known[variant] = ClassTexts(class_features(self.backbone, prompts), prompts)
        return self._known[variant]

    def zero_shot(self, variant: PromptVariant = "paper") -> Tensor:
        text = functional.normalize(self.classes(variant).features, dim=-1)
        return (
            self.backbone.logit_scale * functional.normalize(self.image_features, dim=-1) @ text.T
        )

    def inputs(self, input_kind: str) -> Tensor:
        return self.image_features if input_kind == "features" else self.images


@cache
def small_resnet() -> Backbone:
    """A random ResNet with the embedded model's text tower."""
    tiny = load_backbone("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            128,
            {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
            {"context_length": 24, "vocab_size": 1536, "width": 32, "heads": 2, "layers": 1},
        )
        for norm in model.visual.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):  # a new block's last norm is zero
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    model.logit_scale.data.fill_(math.log(100))  # as in trained models
    model.eval().requires_grad_(False)
    return Backbone("small-resnet", model, tiny.tokenizer, TRANSFORM, "gelu", "0" * 64)


@cache
def open_world(kind: str) -> World:
    """Four classes of noisy patterns with one of the two backbones."""
    backbone = load_backbone("tiny") if kind == "vit" else small_resnet()
    rng = torch.Generator().manual_seed(0)
    patterns = torch.randn(len(CLASSES), 3, 32, 32, generator=rng)
    labels = torch.arange(len(CLASSES)).repeat(4)
    images = patterns[labels] + 0.3 * torch.randn(16, 3, 32, 32, generator=rng)
    return World(kind, backbone, images, labels, backbone.encode_image(images))
