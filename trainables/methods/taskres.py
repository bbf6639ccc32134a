"""TaskRes: a residual on the features (Yu et al., CVPR 2023, arXiv:2211.10277).

Notation: b batch size, c classes, d feature dimension, t base features [c, d], x text residual
[c, d], z image features [b, d], y image residual [1, d], alpha the weight of both residuals,
s = exp(logit_scale).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import PositiveFloat
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.recipes import dassl_crop_scale, taskres_optim
from trainables.methods.tensor_method import TensorMethod

Residual = Literal["text", "image", "both"]


@dataclass(frozen=True)
class TaskResConfig(MethodConfig):
    """Place and weight of the residual."""

    residual: Residual = "text"
    """`text`: one vector per class (TaskRes-T). `image`: one vector for all images (TaskRes-I).
    `both`: both of them, with the same alpha (TaskRes-I&T)."""
    alpha: PositiveFloat = 0.5
    """Weight of the residual; the initial value if it is learned."""
    learn_alpha: bool = False
    """Train alpha = tanh(a), a scalar, with the residual (table 5; not in the authors' code)."""
    normalise_base: bool = False
    """Scale t to unit length before adding the residual; the authors' code does not."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.learn_alpha and self.alpha >= 1:
            found.append(
                f"alpha must be below 1 to be learned as tanh(a), got {self.alpha}: "
                "use e.g. 0.5, or learn_alpha=False"
            )
        return found


class _Factors(NamedTuple):
    """Factors of the logits."""

    weight: Tensor
    """w = t + alpha x, [c, d]."""
    length: Tensor
    """|w|, [c]."""
    unit: Tensor
    """u = v / |v| with v = z + alpha y, [b, d]."""
    norm: Tensor
    """|v|, [b, 1]."""


class TaskRes(TensorMethod):
    """logits = s cos(z + alpha y, t + alpha x), with the configured residuals.

    The image residual is commented out in the released code, and both together are only in the
    paper; that they share one alpha is our reading.

    Features are computed once: of the test view, or of a few augmented views that are used in turn.
    The released code draws new crops in every epoch, which the paper does not mention. This
    deviation makes a training take a second.
    """

    name = "taskres"
    Config = TaskResConfig
    input_kind = "features"
    stackable = True
    base: Tensor
    fixed_alpha: Tensor

    def __init__(self, config: TaskResConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        base = self._base(context.classes)
        self.register_buffer("base", base, persistent=False)
        self.residual: nn.Parameter | None = None
        if config.residual != "image":
            self.residual = nn.Parameter(torch.zeros_like(base))
        self.image_residual: nn.Parameter | None = None
        if config.residual != "text":
            self.image_residual = nn.Parameter(torch.zeros_like(base[:1]))
        self.alpha_logit: nn.Parameter | None = None
        if config.learn_alpha:
            # The paper gives neither initial value nor scope: one scalar from the fixed alpha.
            start = torch.tensor(math.atanh(config.alpha), device=base.device)
            self.alpha_logit = nn.Parameter(start)
        alpha = torch.tensor(float(config.alpha), device=base.device)
        self.register_buffer("fixed_alpha", alpha, persistent=False)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The published settings: alpha 0.5, 1 on Flowers102 (section 4.1).

        `paper` has the templates of table 7, seven of them on ImageNet; `reference` those of the
        released code, eight on ImageNet, with the weight decay and the crops of its framework.
        """
        alpha = 1.0 if facts.dataset == "oxford_flowers" else 0.5
        config = TaskResConfig(prompts=name, alpha=alpha)
        return Recipe(config, taskres_optim(name, facts), dassl_crop_scale(name))

    @property
    def alpha(self) -> Tensor:
        """The weight of the residuals, a scalar tensor."""
        return self.fixed_alpha if self.alpha_logit is None else self.alpha_logit.tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        return self._logits(self._factors(inputs))

    @torch.no_grad()
    def follow(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy, with its gradient in closed form; no random numbers.

        With w = t + alpha x, v = z + alpha y, u = v / |v| and g = dL/dlogits, the logits
        s u w / |w| give

            dL/dw = (s / |w|) sum_b g u - (w / |w|^2) sum_b g logits
            dL/dv = (1 / |v|) (s sum_c g w / |w| - u sum_c g logits)

        This passes over [c, d] half as often as autograd, which matters for a thousand classes.
        """
        factors = self._factors(batch.inputs)
        logits = self._logits(factors)
        logs = logits.log_softmax(dim=-1)
        labels = batch.labels[..., None]
        loss = -logs.gather(-1, labels).mean((-2, -1))
        slope = logs.exp_()
        slope.scatter_add_(-1, labels, slope.new_tensor(-1).expand(labels.shape))
        slope.div_(labels.shape[-2])
        alpha = self.alpha
        gradients, residuals = self._gradients(factors, logits, slope), self._residuals()
        if self.alpha_logit is not None:
            tilts = [(gradients[n] * residual).sum((-2, -1)) for n, residual in residuals.items()]
            self.alpha_logit.grad = torch.stack(tilts).sum(0) * (1 - alpha**2)
        for name, residual in residuals.items():
            residual.grad = gradients[name].mul_(alpha[..., None, None])
        return {"train/loss": loss}

    def _gradients(self, factors: _Factors, logits: Tensor, slope: Tensor) -> dict[str, Tensor]:
        """dL/dw [c, d], and dL/dv summed over the images [1, d], by the residuals' names.
        Overwrites `slope`, g [b, c]."""
        weight, length, unit, norm = factors
        product = slope * logits
        slope.mul_((self.scale / length)[..., None, :])
        gradients = {}
        if self.residual is not None:
            along = product.sum(dim=-2) / length**2
            gradient = slope.mT @ unit
            gradients["residual"] = gradient.addcmul_(weight, along[..., None], value=-1)
        if self.image_residual is not None:
            across = product.sum(dim=-1, keepdim=True) / norm
            # Summed over the images before the product with [c, d]: they share one vector.
            gradient = (slope / norm).sum(dim=-2, keepdim=True) @ weight
            gradients["image_residual"] = gradient.sub_(across.mT @ unit)
        return gradients

    def _factors(self, inputs: Tensor) -> _Factors:
        alpha = self.alpha[..., None, None]
        weight, images = self.base, inputs
        if self.residual is not None:
            weight = torch.addcmul(weight, alpha, self.residual)
        if self.image_residual is not None:
            images = torch.addcmul(images, alpha, self.image_residual)
        length = weight.norm(dim=-1).clamp_min(1e-12)
        norm = images.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return _Factors(weight, length, images / norm, norm)

    def _logits(self, factors: _Factors) -> Tensor:
        # Divides the products [b, c], which are fewer than the weights [c, d], by |w|.
        logits: Tensor = (
            self.scale * factors.unit @ factors.weight.mT / factors.length[..., None, :]
        )
        return logits

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes have no text residual: they keep the base, the zero-shot classifier. The
        image residual belongs to no class and is kept."""
        self.base = self._base(classes)
        if self.residual is not None:
            self.residual = nn.Parameter(torch.zeros_like(self.base))

    def _base(self, classes: ClassTexts) -> Tensor:
        base = classes.features.detach().clone()
        return functional.normalize(base, dim=-1) if self.config.normalise_base else base

    @torch.no_grad()
    def linear_head(self) -> Head:
        """s (t + alpha x) / |t + alpha x|, with the offset alpha y of the images."""
        factors = self._factors(self.base[:1])
        offset = None if self.image_residual is None else self.alpha * self.image_residual[0]
        return Head(self.scale * factors.weight / factors.length[:, None], offset=offset)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Size of each residual without alpha: mean |x| and mean length of its rows; alpha."""
        sizes = {"residual/alpha": self.alpha.item()}
        for name, residual in self._residuals().items():
            sizes[f"{name}/mean"] = residual.abs().mean().item()
            sizes[f"{name}/norm"] = residual.norm(dim=-1).mean().item()
        return sizes

    def _residuals(self) -> dict[str, nn.Parameter]:
        both = {"residual": self.residual, "image_residual": self.image_residual}
        return {name: residual for name, residual in both.items() if residual is not None}

    def learned(self) -> dict[str, Tensor]:
        """`residual` [c, d] or `image_residual` [1, d] or both, and `alpha` []."""
        return {**self._residuals(), "alpha": self.alpha}

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Restores the residuals; class features and backbone must be those of the training."""
        self.check_artifact(tensors, metadata)
        for name, residual in self._residuals().items():
            residual.copy_(tensors[name])
        self.fixed_alpha.copy_(tensors["alpha"])
        # tanh(atanh(alpha)) could differ in the last bit: a loaded alpha is no longer trained.
        self.alpha_logit = None
