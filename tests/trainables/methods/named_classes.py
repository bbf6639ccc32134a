"""Named classes, and images to classify, for methods that learn prompts."""

import torch
from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.data.prompts import PromptVariant, class_features, prompt_set
from trainables.methods.base import BuildContext, ClassTexts, Schedule

NAMES = ("zero", "one", "a red square")
OTHERS = ("blue star", "seven")


def context(
    backbone: Backbone,
    names: tuple[str, ...] = NAMES,
    variant: PromptVariant = "photo",
    seed: int = 0,
    dataset: str = "any",
) -> BuildContext:
    prompts = prompt_set(dataset, names, variant)
    classes = ClassTexts(class_features(backbone, prompts), prompts)
    rng = torch.Generator().manual_seed(seed)
    return BuildContext(backbone, classes, Schedule(()), rng=rng)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))
