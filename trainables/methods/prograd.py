"""ProGrad: CoOp that does not unlearn what zero-shot knows (Zhu et al., ICCV 2023,
arXiv:2205.14865).

Notation: g the cross entropy's gradient, k that of the divergence from the zero-shot model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from trainables.methods.base import Batch, MethodConfig, Preset, Recipe, Tower
from trainables.methods.context import ContextConfig, ContextMethod
from trainables.methods.masking.gradient_rules import opposed
from trainables.optim import OptimConfig

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
"""What the released code's contexts begin with; all other data sets have «a photo of a»."""


@dataclass(frozen=True)
class ProGradConfig(ContextConfig):
    """The context, and how hard it is held to what the zero-shot model knows."""

    projection: float = 1.0
    """lambda: the share of g against k that is taken away where they conflict; 0 is CoOp."""
    temperature: float = 1.0
    """T of the divergence; both models' logits are divided by it."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if not (math.isfinite(self.projection) and self.projection >= 0):
            found.append(f"projection must be finite and >= 0, got {self.projection}: use 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            found.append(f"temperature must be positive and finite, got {self.temperature}: use 1")
        return found


class ProGrad(ContextMethod):
    """Cross entropy whose gradient never points against the zero-shot model's direction."""

    Config: ClassVar[type[MethodConfig]] = ProGradConfig
    kind: ClassVar[str] = "prograd"
    _config: ProGradConfig

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
        """CoOp's setting; lambda 1, and 0.8 for 8 and 16 shots of three data sets.

        `reference`: contexts begin with the words of a template, zeros before them, weight decay
        and crops as in CoOp's code. The zero-shot model's own templates there are reworded («a
        type of pet, a photo of a ...»); here it has R-AMT's usual ones in all presets. The code
        cuts the words off after as many tokens as it counts spaces, which loses the last one where
        there is a comma: here all are kept. `clean` begins with «a photo of a», see CoOp's.
        """
        del images, tower
        weaker = shots >= 8 and dataset in ("oxford_flowers", "dtd", "eurosat")
        projection = 0.8 if weaker else 1.0
        if name == "paper":
            config = ProGradConfig(prompts="single", projection=projection)
        elif name == "reference":
            words = WORDS.get(dataset, "a photo of a")
            config = ProGradConfig(prompts="single", init_words=words, projection=projection)
        else:
            config = ProGradConfig(
                prompts="photo",
                context_tokens=4,
                init_words="a photo of a",
                projection=projection,
            )
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

    @property
    def uses_zero_shot(self) -> bool:
        """Always: for k."""
        return True

    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Two gradients from one forward pass; no random numbers."""
        del rng
        assert batch.zero_shot_logits is not None
        logits = self(batch.inputs)
        loss = functional.cross_entropy(logits, batch.labels)
        away = divergence(logits, batch.zero_shot_logits, self._config.temperature)
        (own,) = torch.autograd.grad(loss, self.context, retain_graph=True)
        (general,) = torch.autograd.grad(away, self.context)
        self.context.grad = aligned(own, general, self._config.projection)
        agreement = functional.cosine_similarity(own.flatten(), general.flatten(), dim=0)
        return {
            "train/loss": loss.item(),
            "train/divergence": away.item(),
            "train/agreement": agreement.item(),
        }


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || model), a mean over rows [b, c]; a scalar (section 3.2).

    The code leaves out the teacher's entropy, which has no gradient.
    """
    model = (logits / temperature).log_softmax(dim=-1)
    target = (teacher / temperature).log_softmax(dim=-1)
    away = functional.kl_div(model, target, reduction="batchmean", log_target=True)
    return temperature**2 * away


def aligned(own: Tensor, general: Tensor, projection: float) -> Tensor:
    """g where <g, k> >= 0, else g - lambda <g, k> / |k|^2 k (section 3.2), over whole tensors.

    Where k vanishes there is nothing to conflict with; the code divides by zero.
    """
    return own - projection * opposed(own, general)
