"""R-AMT: masks on frozen weights, with gradient dropout (Zheng et al., ICCV 2023, 2307.15049).

Notation: W a frozen weight, M its scores, B = [M > threshold] its mask, g = dL/d(W B), l the leak;
a = dL_ce/dB and b = dL_kl/dB, which the straight-through estimator also takes for dL/dM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.methods.base import (
    Batch,
    Classes,
    Head,
    Material,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Schedule,
    Support,
    Tower,
)
from trainables.methods.flip_budget import flip_bound, flip_budget
from trainables.methods.layers import maskable
from trainables.methods.masks import keep, pack_masks, unpack_masks
from trainables.optim import OptimConfig

Masked = Literal["mhsa", "mlp", "all", "dynamic"]

_GROUPS: dict[str, set[str]] = {
    "mhsa": {"mhsa"},
    "mlp": {"mlp"},
    "all": {"mhsa", "mlp", "conv"},
    "dynamic": {"mhsa", "mlp", "conv"},
}

CLEAN_FLIP_BUDGET = 6.0
"""sum of learning rates / (init - threshold) that the `clean` preset aims at: that of the
released schedule at 8 shots on the middle-sized data sets (Caltech101, Flowers102 and alike)."""


@dataclass(frozen=True)
class MaskTuningConfig(MethodConfig):
    """What is masked, and how the scores learn."""

    masked: Masked = "mhsa"
    """`mhsa` attention projections (AMT), `mlp` (MMT), `all` both and every convolution but the
    first (PMT), `dynamic` those of `all` that the first epoch's gradients choose (DMT)."""
    patch_embedding: bool = False
    """Mask the tower's first convolution too, as the released code always does."""
    init: float = 1e-2
    """Every score's first value."""
    threshold: float = 5e-3
    """A weight is kept while its score is strictly greater."""
    leak: float = 1.0
    """l in [0, 1]: 1 drops a conflicting gradient altogether, 0 is plain mask tuning without
    any regularisation. The paper calls l the weight of gradient dropout."""
    norm_weight: float = 0.0
    """Weight of sum ||M||_2 over the masked tensors: 1e-4 in the code, absent from the paper."""
    purity_eps: float = 0.0
    """Added to the purity's denominator: 1e-8 in the released code."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if self.masked not in get_args(Masked):
            found.append(f"masked must be one of {get_args(Masked)}, got {self.masked!r}")
        if not (math.isfinite(self.init) and math.isfinite(self.threshold)):
            found.append(
                f"init and threshold must be finite, got {self.init} and {self.threshold}: "
                "use e.g. 1e-2 and 5e-3"
            )
        elif self.init <= self.threshold:
            found.append(
                f"init must be greater than threshold, so that training starts from the whole "
                f"model, got {self.init} <= {self.threshold}: use e.g. 1e-2 and 5e-3"
            )
        if not 0 <= self.leak <= 1:
            found.append(f"leak must lie in 0..1, got {self.leak}: use e.g. 0.3 or 1")
        for name, value in (("norm_weight", self.norm_weight), ("purity_eps", self.purity_eps)):
            if not (math.isfinite(value) and value >= 0):
                found.append(f"{name} must be finite and not negative, got {value}: use 0")
        return found


class MaskTuning(Method):
    """The image tower with W B in place of W, and the text features as fixed classifier."""

    Config: ClassVar[type[MethodConfig]] = MaskTuningConfig
    reads: ClassVar[Literal["features", "images"]] = "images"
    changes_backbone: ClassVar[bool] = True
    classifier: Tensor
    active: Tensor

    def __init__(
        self,
        config: MaskTuningConfig,
        backbone: Backbone,
        names: Iterable[str],
        classifier: Tensor,
        schedule: Schedule,
    ) -> None:
        """`names`: parameters of the image tower; `classifier` [c, d]: scaled unit vectors."""
        super().__init__()
        self.config, self.schedule, self._backbone = config, schedule, backbone
        self._weights = {name: backbone.visual.get_parameter(name).detach() for name in names}
        self.scores = nn.ParameterDict(
            {
                _key(n): nn.Parameter(torch.full_like(w, config.init))
                for n, w in self._weights.items()
            }
        )
        self.register_buffer("classifier", classifier, persistent=False)
        # Which tensors are trained: all, until `prepare` chooses (`masked="dynamic"`). A buffer,
        # so that the choice is part of the state.
        self.register_buffer("active", torch.ones(len(self._weights), dtype=torch.bool))

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The published settings; `reference` adds what only the code says.

        `clean` is `paper` with a learning rate that gives every few-shot set the same flip budget
        (`CLEAN_FLIP_BUDGET`): the published schedule provably cannot flip a bit in 90 steps or
        fewer, which is all that most data sets take at one shot.
        """
        weak = shots >= 16 and dataset not in ("imagenet", "sun397", "food101")
        config = MaskTuningConfig(
            prompts="clean" if name == "clean" else "single",
            masked="all" if tower == "resnet" else "mhsa",
            patch_embedding=name == "reference" or tower == "resnet",
            leak=0.3 if weak else 1.0,
            norm_weight=1e-4 if name == "reference" else 0.0,
            purity_eps=1e-8 if name == "reference" else 0.0,
        )
        lr, epochs = (3e-5, 10) if dataset == "imagenet" else (8e-5, 30)
        optim = OptimConfig(lr=lr, epochs=epochs, batch_size=32)  # the batch size is the code's
        if name == "clean":
            unit = OptimConfig(lr=1.0, epochs=epochs, batch_size=32)
            gap = config.init - config.threshold
            rate = CLEAN_FLIP_BUDGET * gap / math.fsum(unit.learning_rates(images))
            optim = OptimConfig(lr=rate, epochs=epochs, batch_size=32)
        return Recipe(config, optim, crop_scale=0.5)

    @classmethod
    def build(cls, config: MaskTuningConfig, material: Material) -> Self:
        """See `Method.build`; refuses a tower without the layers that `config` wants masked."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        backbone = material.backbone
        groups = maskable(backbone.visual) if backbone.tower != "other" else {}
        wanted = _GROUPS[config.masked] | ({"patch"} if config.patch_embedding else set())
        needed = wanted - (_GROUPS["all"] if config.masked in ("all", "dynamic") else set())
        if needed - set(groups.values()) or not wanted & set(groups.values()):
            raise MethodError(
                f"masked={config.masked!r} needs {' and '.join(sorted(wanted))} weights in a ViT "
                f"or ResNet image tower, but {backbone.name} ({backbone.tower}) has "
                f"{', '.join(sorted(set(groups.values()))) or 'none that can be masked'}: "
                "use masked='all', or another backbone"
            )
        names = [name for name, group in groups.items() if group in wanted]
        unit = functional.normalize(material.classes.features.detach(), dim=-1)
        classifier = backbone.logit_scale.detach() * unit
        return cls(config, backbone, names, classifier, material.schedule)

    @property
    def uses_zero_shot(self) -> bool:
        """The teacher is needed unless nothing is dropped."""
        return self.config.leak > 0

    def trainable(self) -> dict[str, nn.Parameter]:
        """The scores of the active tensors, by the name of the weight they mask."""
        names = zip(self._weights, self.active.tolist(), strict=True)
        return {name: self.scores[_key(name)] for name, active in names if active}

    def masks(self) -> dict[str, Tensor]:
        """B of every active tensor: bool, True = kept."""
        return {n: m.detach() > self.config.threshold for n, m in self.trainable().items()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Preprocessed images [b, 3, s, s] -> logits [b, c]."""
        return self._logits(self._effective_weights(), inputs)

    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Gradient dropout, (1 - l + l [P > U]) a; uniforms are drawn per tensor, in order."""
        losses, gradients = self.mask_gradients(batch)
        for name, score in self.trainable().items():
            grad = gradients[0][name]
            if self.uses_zero_shot:
                uniform = torch.rand(score.shape, generator=rng, device=rng.device).to(grad.device)
                kept = keep(grad, gradients[1][name], uniform, self.config.purity_eps)
                grad.mul_((1 - self.config.leak) + self.config.leak * kept)
            score.grad = grad
        return losses

    def mask_gradients(self, batch: Batch) -> tuple[dict[str, float], list[dict[str, Tensor]]]:
        """The losses, and a and (with a leak) b of every active tensor, from one forward pass."""
        scores = self.trainable()
        leaves = {n: w.requires_grad_() for n, w in self._effective_weights().items()}
        logits = self._logits(leaves, batch.inputs)
        student = logits.detach().float().requires_grad_()
        losses = {"train/loss": functional.cross_entropy(student, batch.labels)}
        if self.uses_zero_shot:
            if batch.zero_shot_logits is None:
                raise MethodError("leak > 0 needs the batch's zero-shot logits, got None")
            teacher = batch.zero_shot_logits.detach().float().softmax(dim=-1)
            # The code's cross entropy of softened predictions (T = 1): KL(teacher || student) up
            # to the teacher's entropy, with the same gradient.
            losses["train/kl"] = -(teacher * student.log_softmax(dim=-1)).sum(dim=-1).mean()
        cotangents = [torch.autograd.grad(loss, student)[0] for loss in losses.values()]
        gradients = [
            {n: grad.mul_(self._weights[n]) for n, grad in zip(leaves, grads, strict=True)}
            for grads in _backward(logits, list(leaves.values()), cotangents)
        ]
        if self.config.norm_weight:  # part of a, as in the code
            for name, score in scores.items():
                norm = score.detach().norm().clamp_min(1e-30)
                gradients[0][name].add_(score.detach() * (self.config.norm_weight / norm))
        return {name: loss.item() for name, loss in losses.items()}, gradients

    def prepare(self, support: Support) -> None:
        """R-DMT: keep the tensors whose cross-entropy gradient, summed over one epoch without
        updates, has a positive mean (it lowers the scores on average); if there is none, the one
        with the largest mean, so that there is something to train (the paper does not say)."""
        if self.config.masked != "dynamic":
            return
        totals = torch.zeros(len(self._weights), dtype=torch.float64)
        for batch in support.batches():
            leaves = {n: w.clone().requires_grad_() for n, w in self._weights.items()}
            logits = self._logits(leaves, batch.inputs)
            loss = functional.cross_entropy(logits.float(), batch.labels)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            for index, (name, grad) in enumerate(zip(self._weights, gradients, strict=True)):
                totals[index] += (self._weights[name] * grad).mean().item()
        chosen = totals > 0
        if not chosen.any():
            chosen = totals == totals.max()
        self.active.copy_(chosen)

    def forecast(self) -> dict[str, float]:
        """Flip budget and hard bound of the schedule, in multiples of init - threshold."""
        gap = self.config.init - self.config.threshold
        return {
            "flip/budget": flip_budget(self.schedule, gap),
            "flip/bound": flip_bound(self.schedule, gap),
        }

    def warnings(self) -> list[str]:
        """Says where no bit, or hardly any, can flip."""
        forecast = self.forecast()
        advice = "raise lr, epochs or the number of steps, or lower init - threshold"
        if forecast["flip/bound"] < 1:
            return [
                f"No mask bit can flip: Adam moves a score at most {forecast['flip/bound']:.2f} of "
                f"the way to the threshold, so the model stays zero-shot; {advice}."
            ]
        if forecast["flip/budget"] < 1:
            return [
                f"Hardly a mask bit will flip: the learning rates add up to only "
                f"{forecast['flip/budget']:.2f} of the way to the threshold; {advice}."
            ]
        return []

    def transfer(self, classes: Classes) -> None:
        """The masks stay: they belong to the image tower."""
        unit = functional.normalize(classes.features.detach(), dim=-1)
        self.classifier = self._backbone.logit_scale.detach() * unit

    def progress(self) -> dict[str, float]:
        """Bits that are 0, and their share of all masked elements (not of the whole tower)."""
        masks = self.masks().values()
        flipped = sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)
        return {
            "mask/flipped": float(flipped),
            "mask/sparsity": flipped / sum(mask.numel() for mask in masks),
            "mask/tensors": float(len(masks)),
        }

    def tuned(self) -> Backbone:
        """The image tower with W B in place of W."""
        weights = self._effective_weights()
        return self._backbone.changed({f"visual.{name}": w for name, w in weights.items()})

    def head(self) -> Head:
        """The text features, as without masks."""
        return Head(self.classifier)

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The packed bits, see `masks.py`."""
        return pack_masks(self.masks(), self._backbone.fingerprint)

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Scores become init where a bit is 1, and the mirror image of init at the threshold
        where it is 0. `dynamic` accepts any choice of tensors that it could have made itself."""
        masks = unpack_masks(tensors, metadata, self._backbone.fingerprint)
        fits = {n: tuple(w.shape) for n, w in self._weights.items()}
        if self.config.masked == "dynamic":
            fits = {name: shape for name, shape in fits.items() if name in masks}
        shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
        if shapes != fits or not masks:
            raise MethodError(
                f"the masks must fit masked={self.config.masked!r}, "
                f"patch_embedding={self.config.patch_embedding}, but these tensors are missing, "
                f"superfluous or of another shape: {_difference(shapes, fits)}; "
                "load them with the configuration they were trained with"
            )
        low = 2 * self.config.threshold - self.config.init
        for name, weight in self._weights.items():
            score = self.scores[_key(name)].fill_(self.config.init)
            if name in masks:
                score.masked_fill_(~masks[name].to(weight.device), low)
        self.active.copy_(torch.tensor([name in masks for name in self._weights]))

    def _effective_weights(self) -> dict[str, Tensor]:
        masks = self.masks()
        return {name: self._weights[name] * mask for name, mask in masks.items()}

    def _logits(self, weights: dict[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = functional_call(self._backbone.visual, weights, (images,))
        return functional.normalize(features.float(), dim=-1) @ self.classifier.T


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's key must not contain a dot


def _backward(
    logits: Tensor, leaves: list[Tensor], cotangents: list[Tensor]
) -> list[tuple[Tensor, ...]]:
    """One tuple of gradients per cotangent, from one graph.

    One pass per cotangent: a batched pass (`is_grads_batched`) measured 9 % slower on a CPU at
    the embedded model's size, where the work is in the matrix products.
    """
    last = len(cotangents) - 1
    return [
        torch.autograd.grad(logits, leaves, cotangent.to(logits.dtype), retain_graph=i < last)
        for i, cotangent in enumerate(cotangents)
    ]


def _difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    names = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
