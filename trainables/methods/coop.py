"""CoOp: a learned context before the class names (Zhou et al., IJCV 2022, arXiv:2109.01134)."""

from __future__ import annotations

from trainables.methods.base import Preset, Recipe, TaskFacts
from trainables.methods.context import ContextConfig, ContextMethod
from trainables.methods.recipes import coop_optim, dassl_crop_scale


class CoOp(ContextMethod):
    """Cross entropy over a learned context (equations 2 and 3)."""

    name = "coop"
    Config = ContextConfig

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """Section 4.1: M = 16 random vectors, one context for all classes, the name at the end.

        In the base-to-new and cross-dataset experiments, which are CoCoOp's (its section 4.1), CoOp
        starts from the four words "a photo of a". `clean` always does, so that it starts as the
        zero-shot model: random initial values make results differ from seed to seed.
        """
        if name == "clean" or facts.protocol in ("base-to-new", "cross-dataset"):
            config = ContextConfig(prompts="photo", context_tokens=4, init_words="a photo of a")
        else:
            config = ContextConfig(prompts="single")
        return Recipe(config, coop_optim(name, facts), dassl_crop_scale(name))
