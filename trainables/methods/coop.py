"""CoOp: a learned context before the class names (Zhou et al., IJCV 2022, arXiv:2109.01134)."""

from __future__ import annotations

from typing import ClassVar

from trainables.methods.base import MethodConfig, Preset, Recipe, Tower
from trainables.methods.context import ContextConfig, ContextMethod
from trainables.optim import OptimConfig


class CoOp(ContextMethod):
    """Cross entropy over a learned context (their equations 2 and 3)."""

    Config: ClassVar[type[MethodConfig]] = ContextConfig
    kind: ClassVar[str] = "coop"

    @classmethod
    def preset(
        cls,
        name: Preset,
        *,
        dataset: str,
        shots: int,
        images: int,
        tower: Tower = "vit",
    ) -> Recipe:
        """Section 4.1: M = 16, one context for all classes, the name at the end.

        The paper is silent about batch, momentum and weight decay: batch 32 and momentum 0.9 are
        the code's, weight decay is none in `paper`. `reference` adds what the code inherits from
        its framework's defaults, a weight decay of 5e-4 and random crops (scale 0.08-1) with
        flips. `clean` begins with the four words «a photo of a», so that it starts as the zero-shot
        model: the authors' own advice in CoCoOp (section 4.1), against results that a random start
        makes differ from seed to seed.
        """
        del images, tower
        if name == "clean":
            config = ContextConfig(prompts="photo", context_tokens=4, init_words="a photo of a")
        else:
            config = ContextConfig(prompts="single")
        epochs = 50 if shots <= 1 or dataset == "imagenet" else 100 if shots <= 4 else 200
        optim = OptimConfig(
            lr=2e-3,
            epochs=epochs,
            batch_size=32,
            weight_decay=5e-4 if name == "reference" else 0.0,
            warmup_epochs=1,
            optimiser="sgd",
        )
        return Recipe(config, optim, crop_scale=0.08 if name == "reference" else 1.0)
