"""ProGrad: CoOp with gradients that do not oppose the zero-shot model's knowledge (Zhu et al.,
ICCV 2023, arXiv:2205.14865).

Notation: b batch size, c classes, g the cross entropy's gradient, k that of the divergence from the
zero-shot model, T temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainables.core.limits import NonNegativeFloat, PositiveFloat
from trainables.methods.base import Batch, Preset, Recipe, TaskFacts
from trainables.methods.context import ContextConfig, ContextMethod
from trainables.methods.gradient_rules import opposed
from trainables.methods.recipes import coop_optim, dassl_crop_scale

WORDS: dict[str, str] = {
    "oxford_pets": "a type of pet, a photo of a",
    "oxford_flowers": "a type of flower, a photo of a",
    "fgvc_aircraft": "a type of aircraft, a photo of a",
    "food101": "a type of food, a photo of",
    "dtd": "a texture of",
    "eurosat": "a centered satellite photo of",
    "ucf101": "a photo of a person doing",
    "digits": "a photo of the digit",
}
"""Initial words of the released code's contexts; "a photo of a" for all other data sets."""


@dataclass(frozen=True)
class ProGradConfig(ContextConfig):
    """The context, and how strongly it is tied to the zero-shot model."""

    projection: NonNegativeFloat = 1.0
    """lambda: the share of g's component against k that is removed; 0 is CoOp."""
    temperature: PositiveFloat = 1.0
    """T of the divergence, which divides both models' logits."""


class ProGrad(ContextMethod):
    """Cross entropy with a gradient that never points against the zero-shot direction."""

    name = "prograd"
    Config = ProGradConfig

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """CoOp's setting with 16 tokens; lambda 1, and 0.8 for 8 and 16 shots of three data sets in
        the few-shot experiments.

        In `reference`, contexts start from the words of a template, after zeros. The zero-shot
        model's templates are reworded in the code ("a type of pet, a photo of a ..."); here it has
        the usual ones in all presets. The code truncates the words to as many tokens as it counts
        spaces, which loses the last one after a comma; here all are kept. `clean` starts from "a
        photo of a", as CoOp's.
        """
        few_shot = facts.protocol == "few-shot" and facts.shots >= 8
        weaker = few_shot and facts.dataset in ("oxford_flowers", "dtd", "eurosat")
        projection = 0.8 if weaker else 1.0
        if name == "clean":
            config = ProGradConfig("photo", 4, "a photo of a", projection=projection)
        else:
            words = WORDS.get(facts.dataset, "a photo of a") if name == "reference" else ""
            config = ProGradConfig("single", init_words=words, projection=projection)
        return Recipe(config, coop_optim(name, facts), dassl_crop_scale(name))

    @property
    def uses_zero_shot(self) -> bool:
        return True

    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Both gradients from one forward pass; no random numbers."""
        assert batch.zero_shot_logits is not None
        logits = self(batch.inputs)
        loss = functional.cross_entropy(logits, batch.labels)
        away = divergence(logits, batch.zero_shot_logits, self.config.temperature)
        (own,) = torch.autograd.grad(loss, self.context, retain_graph=True)
        (general,) = torch.autograd.grad(away, self.context)
        self.context.grad = aligned(own, general, self.config.projection)
        agreement = functional.cosine_similarity(own.flatten(), general.flatten(), dim=0)
        return {
            "train/loss": loss.item(),
            "train/divergence": away.item(),
            "train/agreement": agreement.item(),
        }


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || model), a mean over rows [b, c]; a scalar (section 3.2).

    The code omits the teacher's entropy, which has no gradient.
    """
    model = (logits / temperature).log_softmax(dim=-1)
    target = (teacher / temperature).log_softmax(dim=-1)
    away = functional.kl_div(model, target, reduction="batchmean", log_target=True)
    return temperature**2 * away


def aligned(own: Tensor, general: Tensor, projection: float) -> Tensor:
    """g if <g, k> >= 0, else g - lambda <g, k> / |k|^2 k (section 3.2), over whole tensors.

    If k vanishes, the result is g; the code divides by zero.
    """
    return own - projection * opposed(own, general)
