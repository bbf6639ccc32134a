"""TaskRes: a residual on the features (Yu et al., CVPR 2023, arXiv:2211.10277).

Notation: t base features [c, d], x text residual [c, d], z image features [b, d], y image residual
[1, d], alpha the weight of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import check_metadata, check_tensors, described, detached
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Tower,
)
from trainables.optim import OptimConfig

Residual = Literal["text", "image", "both"]


@dataclass(frozen=True)
class TaskResConfig(MethodConfig):
    """Where the residual goes and how much it weighs."""

    residual: Residual = "text"
    """`text`: a vector for every class (TaskRes-T). `image`: one vector that all images share
    (TaskRes-I). `both`: the two of them, with the same alpha (TaskRes-I&T)."""
    alpha: float = 0.5
    """Weight of the residual; where it is learned, its first value."""
    learn_alpha: bool = False
    """Train alpha = tanh(a), a scalar, along with the residual (table 5; not in their code)."""
    normalise_base: bool = False
    """Scale t to unit length before the residual is added; the authors' code does not."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if self.residual not in get_args(Residual):
            found.append(f"residual must be one of {get_args(Residual)}, got {self.residual!r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            found.append(f"alpha must be positive and finite, got {self.alpha}: use e.g. 0.5")
        elif self.learn_alpha and self.alpha >= 1:
            found.append(
                f"alpha must be below 1 to be learned as tanh(a), got {self.alpha}: "
                "use e.g. 0.5, or learn_alpha=False"
            )
        return found


class _Factors(NamedTuple):
    """What the logits are made of."""

    weight: Tensor
    """t + alpha x, [c, d]."""
    length: Tensor
    """Of the weights, [c]."""
    unit: Tensor
    """z + alpha y at unit length, [b, d]."""
    norm: Tensor
    """The length that it had, [b, 1]."""


class TaskRes(Method):
    """logits = exp(logit_scale) cos(z + alpha y, t + alpha x), with the residuals that there are.

    The image residual is a comment in the released code, and both together are in the paper only;
    that they share one alpha is our reading.

    It reads features, computed once: of the test view, or of a few augmented views in turn. The
    released code draws new crops in every epoch, which the paper does not mention: a deviation
    that makes a training cost a second.
    """

    Config: ClassVar[type[MethodConfig]] = TaskResConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"
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
        self.residual: nn.Parameter | None = None
        if config.residual != "image":
            self.residual = nn.Parameter(torch.zeros_like(base))
        self.image_residual: nn.Parameter | None = None
        if config.residual != "text":
            self.image_residual = nn.Parameter(torch.zeros_like(base[:1]))
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
    def build(cls, config: TaskResConfig, material: BuildContext) -> Self:
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
        return self._logits(self._factors(inputs))

    @torch.no_grad()
    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Cross entropy, its gradient in closed form; no random numbers.

        With w = t + alpha x, v = z + alpha y, u = v / |v| and g = dL/dlogits, the logits
        s u w / |w| give

            dL/dw = (s / |w|) sum_b g u - (w / |w|^2) sum_b g logits
            dL/dv = (1 / |v|) (s sum_c g w / |w| - u sum_c g logits)

        dL/dw takes half the passes over [c, d] that autograd would, which a thousand classes feel.
        """
        del rng
        factors = self._factors(batch.inputs)
        logits = self._logits(factors)
        logs = logits.log_softmax(dim=-1)
        loss = functional.nll_loss(logs, batch.labels)
        rows = torch.arange(len(logs), device=logs.device)
        slope = logs.exp_()
        slope[rows, batch.labels] -= 1
        slope.div_(len(rows))
        alpha = self.alpha
        gradients, residuals = self._gradients(factors, logits, slope), self._residuals()
        if self.alpha_logit is not None:
            tilts = [(gradients[name] * residual).sum() for name, residual in residuals.items()]
            self.alpha_logit.grad = torch.stack(tilts).sum() * (1 - alpha**2)
        for name, residual in residuals.items():
            residual.grad = gradients[name].mul_(alpha)
        return {"train/loss": loss.item()}

    def _gradients(self, factors: _Factors, logits: Tensor, slope: Tensor) -> dict[str, Tensor]:
        """dL/dw [c, d] and dL/dv, summed over the images [1, d], by the residuals' names; `slope`,
        g [b, c], is used up."""
        weight, length, unit, norm = factors
        product = slope * logits
        slope.mul_(self.scale / length)
        gradients = {}
        if self.residual is not None:
            along = product.sum(dim=0) / length**2
            gradient = slope.T @ unit
            gradients["residual"] = gradient.addcmul_(weight, along[:, None], value=-1)
        if self.image_residual is not None:
            across = product.sum(dim=1, keepdim=True) / norm
            # Summed over the images before it meets [c, d]: they share one vector.
            gradient = (slope / norm).sum(dim=0, keepdim=True) @ weight
            gradients["image_residual"] = gradient.addmm_(across.T, unit, alpha=-1)
        return gradients

    def _factors(self, inputs: Tensor) -> _Factors:
        alpha = self.alpha
        weight, images = self.base, inputs
        if self.residual is not None:
            weight = torch.addcmul(weight, alpha, self.residual)
        if self.image_residual is not None:
            images = torch.addcmul(images, alpha, self.image_residual)
        length = weight.norm(dim=-1).clamp_min(1e-12)
        norm = images.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return _Factors(weight, length, images / norm, norm)

    def _logits(self, factors: _Factors) -> Tensor:
        # Lengths divide the products [b, c], which are fewer than the weights [c, d].
        logits: Tensor = self.scale * factors.unit @ factors.weight.T / factors.length
        return logits

    def trainable(self) -> dict[str, nn.Parameter]:
        """The residuals and, where it is learned, alpha's argument a."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes have no residual: they keep the base, the zero-shot classifier. That of
        the images belongs to no class, and stays."""
        base = classes.features.detach().clone()
        self.base = functional.normalize(base, dim=-1) if self._normalise else base
        if self.residual is not None:
            self.residual = nn.Parameter(torch.zeros_like(base))

    @torch.no_grad()
    def linear_head(self) -> Head:
        """s (t + alpha x) / |t + alpha x|, behind the offset alpha y of the images."""
        factors = self._factors(self.base[:1])
        offset = None if self.image_residual is None else self.alpha * self.image_residual[0]
        return Head(self.scale * factors.weight / factors.length[:, None], offset=offset)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Size of each residual x without alpha: mean |x| and mean length of its rows; alpha."""
        sizes = {"residual/alpha": self.alpha.item()}
        for name, residual in self._residuals().items():
            sizes[f"{name}/mean"] = residual.abs().mean().item()
            sizes[f"{name}/norm"] = residual.norm(dim=-1).mean().item()
        return sizes

    def _residuals(self) -> dict[str, nn.Parameter]:
        both = {"residual": self.residual, "image_residual": self.image_residual}
        return {name: residual for name, residual in both.items() if residual is not None}

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """`residual` [c, d] or `image_residual` [1, d] or both, and `alpha` []."""
        tensors = self._residuals() | {"alpha": self.alpha}
        return detached(tensors), described("taskres", self._fingerprint)

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """See `Method.load_artifact`; class features and backbone must be those of the training."""
        check_metadata(metadata, described("taskres", self._fingerprint))
        residuals = self._residuals()
        shapes = {name: tuple(residual.shape) for name, residual in residuals.items()}
        check_tensors(tensors, shapes | {"alpha": ()})
        for name, residual in residuals.items():
            residual.copy_(tensors[name])
        self.fixed_alpha.copy_(tensors["alpha"])
        # tanh(atanh(alpha)) could differ in the last bit: a loaded alpha is no longer trained.
        self.alpha_logit = None
