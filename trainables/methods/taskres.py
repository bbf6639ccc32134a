"""TaskRes: a residual on the text features (Yu et al., CVPR 2023, arXiv:2211.10277).

Notation: t base features [c, d], x residual [c, d], alpha its weight, z image features [b, d].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import check_metadata, check_tensors, described, detached
from trainables.methods.base import (
    Batch,
    Classes,
    Material,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Tower,
)
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class TaskResConfig(MethodConfig):
    """Where the residual goes and how much it weighs."""

    alpha: float = 0.5
    """Weight of the residual; where it is learned, its first value."""
    learn_alpha: bool = False
    """Train alpha = tanh(a), a scalar, along with the residual (table 5; not in their code)."""
    normalise_base: bool = False
    """Scale t to unit length before the residual is added; the authors' code does not."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            found.append(f"alpha must be positive and finite, got {self.alpha}: use e.g. 0.5")
        elif self.learn_alpha and self.alpha >= 1:
            found.append(
                f"alpha must be below 1 to be learned as tanh(a), got {self.alpha}: "
                "use e.g. 0.5, or learn_alpha=False"
            )
        return found


class TaskRes(Method):
    """logits = exp(logit_scale) cos(z, t + alpha x): the residual on the text side (TaskRes-T).

    It reads features, computed once: of the test view, or of a few augmented views in turn. The
    released code draws new crops in every epoch, which the paper does not mention: a deviation
    that makes a training cost a second.
    """

    Config: ClassVar[type[MethodConfig]] = TaskResConfig
    reads: ClassVar[Literal["features", "images"]] = "features"
    base: Tensor
    scale: Tensor
    fixed_alpha: Tensor

    def __init__(
        self, config: TaskResConfig, base: Tensor, scale: Tensor, fingerprint: str
    ) -> None:
        """`base` [c, d], `scale` a scalar tensor: exp(logit_scale)."""
        super().__init__()
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.residual = nn.Parameter(torch.zeros_like(base))
        self.alpha_logit: nn.Parameter | None = None
        if config.learn_alpha:
            # The paper gives neither start nor scope: one scalar that starts at the fixed alpha.
            start = torch.tensor(math.atanh(config.alpha), device=base.device)
            self.alpha_logit = nn.Parameter(start)
        alpha = torch.tensor(float(config.alpha), device=base.device)
        self.register_buffer("fixed_alpha", alpha, persistent=False)
        self._fingerprint = fingerprint
        self._normalise = config.normalise_base

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
        """The published settings.

        `reference` adds what the released code inherits from its framework's defaults, a weight
        decay of 5e-4 and random crops (scale 0.08-1) with flips, and its prompts.
        """
        del images, tower
        config = TaskResConfig(prompts=name, alpha=1.0 if dataset == "oxford_flowers" else 0.5)
        optim = OptimConfig(
            lr=2e-4 if dataset == "imagenet" else 2e-3,
            epochs=100 if shots <= 4 else 200,
            batch_size=256,
            weight_decay=5e-4 if name == "reference" else 0.0,
            warmup_epochs=1,
        )
        return Recipe(config, optim, crop_scale=0.08 if name == "reference" else 1.0)

    @classmethod
    def build(cls, config: TaskResConfig, material: Material) -> Self:
        """See `Method.build`."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        base, backbone = material.classes.features.detach().clone(), material.backbone
        if config.normalise_base:
            base = functional.normalize(base, dim=-1)
        return cls(config, base, backbone.logit_scale.detach().clone(), backbone.fingerprint)

    @property
    def alpha(self) -> Tensor:
        """The weight of the residual, a scalar tensor."""
        return self.fixed_alpha if self.alpha_logit is None else self.alpha_logit.tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        weight, length, unit = self._factors(inputs)
        return self._logits(weight, length, unit)

    @torch.no_grad()
    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Cross entropy, its gradient in closed form; no random numbers.

        With w = t + alpha x, u = z / |z| and g = dL/dlogits, logits = s u w / |w| gives
        dL/dw = (s / |w|) sum_b g u - (w / |w|^2) sum_b g logits: half the passes over [c, d] that
        autograd takes, which a thousand classes feel.
        """
        del rng
        weight, length, unit = self._factors(batch.inputs)
        logits = self._logits(weight, length, unit)
        logs = logits.log_softmax(dim=-1)
        loss = functional.nll_loss(logs, batch.labels)
        rows = torch.arange(len(logs), device=logs.device)
        slope = logs.exp_()
        slope[rows, batch.labels] -= 1
        slope.div_(len(rows))
        along = (slope * logits).sum(dim=0) / length**2
        gradient = slope.mul_(self.scale / length).T @ unit
        gradient.addcmul_(weight, along[:, None], value=-1)
        alpha = self.alpha
        if self.alpha_logit is not None:
            self.alpha_logit.grad = (gradient * self.residual).sum() * (1 - alpha**2)
        self.residual.grad = gradient.mul_(alpha)
        return {"train/loss": loss.item()}

    def _factors(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t + alpha x [c, d], its lengths [c], and the inputs [b, d] at unit length."""
        weight = torch.addcmul(self.base, self.alpha, self.residual)
        length = weight.norm(dim=-1).clamp_min(1e-12)
        return weight, length, functional.normalize(inputs, dim=-1)

    def _logits(self, weight: Tensor, length: Tensor, unit: Tensor) -> Tensor:
        # Lengths divide the products [b, c], which are fewer than the weights [c, d].
        logits: Tensor = self.scale * unit @ weight.T / length
        return logits

    def trainable(self) -> dict[str, nn.Parameter]:
        """The residual and, where it is learned, alpha's argument a."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def transfer(self, classes: Classes) -> None:
        """Other classes have no residual: they keep the base, the zero-shot classifier."""
        base = classes.features.detach().clone()
        self.base = functional.normalize(base, dim=-1) if self._normalise else base
        self.residual = nn.Parameter(torch.zeros_like(base))

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Size of the residual without alpha: mean |x| and mean length of its rows; alpha."""
        return {
            "residual/mean": self.residual.abs().mean().item(),
            "residual/norm": self.residual.norm(dim=-1).mean().item(),
            "residual/alpha": self.alpha.item(),
        }

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """`residual` [c, d] and `alpha` []."""
        tensors = {"residual": self.residual, "alpha": self.alpha}
        return detached(tensors), described("taskres", self._fingerprint)

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """See `Method.load_artifact`; class features and backbone must be those of the training."""
        check_metadata(metadata, described("taskres", self._fingerprint))
        check_tensors(tensors, {"residual": tuple(self.residual.shape), "alpha": ()})
        self.residual.copy_(tensors["residual"])
        self.fixed_alpha.copy_(tensors["alpha"])
        # tanh(atanh(alpha)) could differ in the last bit: a loaded alpha is no longer trained.
        self.alpha_logit = None
