"""Mask tuning, whichever tower is masked: R-AMT and its variants (Zheng et al., ICCV 2023,
arXiv:2307.15049).

Notation: W, M, B as in `scores.py`, a, b, l as in `gradient_rules.py`; b batch size, c classes,
d feature dimension, T temperature; lr_t learning rates, gap = init - threshold.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.core.limits import FiniteFloat, NonNegativeFloat, PositiveFloat, Share
from trainables.methods.base import (
    Batch,
    BuildContext,
    Method,
    MethodConfig,
    MethodError,
    Schedule,
    Support,
)
from trainables.methods.gradient_rules import GRADIENT_RULES, Dropping, GradientRule, RuleName
from trainables.methods.masking.layers import Masked
from trainables.methods.masking.masks import pack_masks, unpack_masks
from trainables.methods.masking.scores import Granularity, MaskScores

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class MaskConfig(MethodConfig):
    """What is masked, and how the scores are trained."""

    masked: Masked = "mhsa"
    """`mhsa`: attention projections (AMT). `mlp`: MLP layers (MMT). `all`: both and every
    convolution (PMT). `dynamic`: the layers of `all` that the first epoch's gradients select
    (DMT)."""
    granularity: Granularity = "element"
    """One score per `element` of a weight, per row (`filter`) or per column (`channel`). The paper
    gives no initial score or threshold for groups; they are the same here."""
    init: FiniteFloat = 1e-2
    """Initial value of every score."""
    threshold: FiniteFloat = 5e-3
    """A weight is kept while its score is strictly greater. Equation 14 also keeps equal scores;
    the text and the released code do not."""
    rule: RuleName = "gradient-dropout"
    """Rule that merges the gradients of task and teacher, see `GRADIENT_RULES`: `none` is plain
    mask tuning, `gradient-dropout` the regularised one (the R in R-AMT)."""
    leak: Share = 1.0
    """l in [0, 1], for `gradient-dropout` and `sign`: 1 removes a dropped gradient entirely, 0
    drops nothing. The paper calls l the weight of gradient dropout."""
    leak_kl: Share = 1.0
    """The same for the teacher's gradient, for `sign` only."""
    temperature: PositiveFloat = 1.0
    """T of the divergence from the teacher, which is multiplied by T^2. 1 in the code."""
    teacher_share: Share = 1.0
    """Share of the zero-shot model's logits in the teacher's; the rest are the student's own,
    through which gradients flow (FUSE_ALPHA in the code, with the value 1; not in the paper)."""
    norm_weight: NonNegativeFloat = 0.0
    """Weight of sum ||M||_2 over the masked tensors: 1e-4 in the code, absent from the paper."""
    purity_eps: NonNegativeFloat = 0.0
    """Added to the purity's denominator: 1e-8 in the released code."""
    precision: Precision = "float32"
    """Precision of the tower's activations in training; `bfloat16` is faster on devices that
    support it. Scores, losses, Adam's moments and evaluation are always float32."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.init <= self.threshold:
            found.append(
                f"init must be greater than threshold, so that training starts from the whole "
                f"model, got {self.init} <= {self.threshold}: use e.g. 1e-2 and 5e-3"
            )
        return found

    @property
    def gradient_rule(self) -> GradientRule:
        """The rule; `none` for a `gradient-dropout` that drops nothing."""
        idle = self.rule == "gradient-dropout" and self.leak == 0
        return GRADIENT_RULES["none" if idle else self.rule]


class MaskMethod(Method):
    """A CLIP with W B in place of some of its weights W."""

    Config = MaskConfig
    changes_backbone = True
    prefix: ClassVar[str] = ""
    """Prefix of the masked weights' names in the model."""
    config: MaskConfig

    def __init__(self, config: MaskConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self._schedule = context.schedule
        model = self.backbone.model
        names = self.weight_names()
        weights = {name: model.get_parameter(self.prefix + name).detach() for name in names}
        self.scores = MaskScores(weights, config.init, config.threshold, config.granularity)
        self._loaded_change = ""  # not recoverable from the bits: kept as it was loaded
        self.set_classes(context.classes)

    @abstractmethod
    def weight_names(self) -> Collection[str]:
        """Parameters of the model to mask, without `prefix`; raises `MethodError` if the backbone
        lacks them."""

    @abstractmethod
    def features(self, weights: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Masked weights by name, and inputs (see `input_kind`) -> image features [b, d], not
        normalised, and the classifier [c, d], float32: unit vectors times the logit scale."""

    @property
    def uses_zero_shot(self) -> bool:
        """Unless the rule ignores the teacher's gradient."""
        return self.config.gradient_rule.reads_teacher

    def trainable(self) -> dict[str, nn.Parameter]:
        """The scores of the active tensors, by the name of the weight they mask."""
        return self.scores.trainable()

    def masks(self) -> dict[str, Tensor]:
        """B of every active tensor: bool, True = kept."""
        return self.scores.masks()

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (see `input_kind`) -> logits [b, c], float32 in every training precision."""
        return self._logits(self.scores.effective(), inputs)

    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Sets the merged gradients; random numbers are drawn tensor by tensor, in order."""
        scores = self.trainable()
        for score in scores.values():
            score.grad = None  # frees the last step's gradients, as large as all masks
        losses, (first, *rest) = self.mask_gradients(batch)
        merge = self.config.gradient_rule.merge
        dropping = Dropping(self.config.leak, self.config.leak_kl, self.config.purity_eps)
        for name, score in scores.items():
            a = first.pop(name)
            b = rest[0].pop(name) if rest else a

            def draw(like: Tensor = a) -> Tensor:
                return torch.rand(like.shape, generator=rng, device=rng.device).to(like.device)

            score.grad = merge(a, b, draw, dropping)
        return losses

    def mask_gradients(self, batch: Batch) -> tuple[dict[str, float], list[dict[str, Tensor]]]:
        """The losses, and a and (with a teacher) b of every active tensor, from one forward
        pass."""
        scores = self.trainable()
        leaves = {n: w.requires_grad_() for n, w in self.scores.effective().items()}
        logits = self._logits(leaves, batch.inputs, self.config.precision)
        student = logits.detach().requires_grad_()
        losses = {"train/loss": functional.cross_entropy(student, batch.labels)}
        if self.uses_zero_shot:
            if batch.zero_shot_logits is None:
                raise MethodError(
                    f"rule={self.config.rule!r} needs the batch's zero-shot logits, got None"
                )
            losses["train/kl"] = self._divergence(student, batch.zero_shot_logits.detach().float())
        cotangents = [torch.autograd.grad(loss, student)[0] for loss in losses.values()]
        gradients = [
            {n: self.scores.gradient(n, grad) for n, grad in zip(leaves, grads, strict=True)}
            for grads in _backward(logits, list(leaves.values()), cotangents)
        ]
        if self.config.norm_weight:  # part of a, as in the code
            for name, score in scores.items():
                norm = score.detach().norm().clamp_min(1e-30)
                gradients[0][name].add_(score.detach() * (self.config.norm_weight / norm))
        return {name: loss.item() for name, loss in losses.items()}, gradients

    def prepare(self, support: Support) -> None:
        """R-DMT: keeps the layers whose cross-entropy gradient, accumulated over one epoch without
        updates, has a positive mean, which lowers their scores on average.

        The paper selects whole layers, and so does this: an attention, an MLP or a convolution
        with all its masked tensors, see `layer_of`. The released code does not include R-DMT.
        """
        if self.config.masked != "dynamic":
            return
        weights = self.scores.weights
        totals = torch.zeros(len(weights), dtype=torch.float64)
        for batch in support.batches():
            leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
            logits = self._logits(leaves, batch.inputs, self.config.precision)
            loss = functional.cross_entropy(logits, batch.labels)
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            for index, (name, grad) in enumerate(zip(weights, gradients, strict=True)):
                totals[index] += self.scores.gradient(name, grad).sum(dtype=torch.float64).item()
        self.scores.choose(totals)

    def forecast(self) -> dict[str, float]:
        """Flip budget and its upper bound, in multiples of init - threshold."""
        gap = self.config.init - self.config.threshold
        return {
            "flip/budget": flip_budget(self._schedule, gap),
            "flip/bound": flip_bound(self._schedule, gap),
        }

    @property
    def is_idle(self) -> bool:
        """Whether no bit can flip, see `flip_bound`."""
        return self.forecast()["flip/bound"] < 1

    def warnings(self) -> list[str]:
        """Warns if no bit, or hardly any, can flip."""
        forecast = self.forecast()
        advice = "raise lr, epochs or the number of steps, or lower init - threshold"
        if self.is_idle:
            return [
                f"No mask bit can flip: Adam moves a score at most {forecast['flip/bound']:.2f} of "
                f"the way to the threshold, so the model stays zero-shot and is not trained; "
                f"{advice}."
            ]
        if forecast["flip/budget"] < 1:
            return [
                f"Hardly a mask bit will flip: the learning rates add up to only "
                f"{forecast['flip/budget']:.2f} of the way to the threshold; {advice}."
            ]
        return []

    def progress(self) -> dict[str, float]:
        """Scalars about the masks, see `MaskScores.progress`."""
        return self.scores.progress()

    def merged_backbone(self) -> Backbone:
        weights = self.scores.effective()
        return self.backbone.changed({f"{self.prefix}{name}": w for name, w in weights.items()})

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The packed bits, see `masks.py`: one per score. The metadata has `prefix`, which
        identifies the tower, and `score_change`: `MaskScores.change` as JSON."""
        tensors, metadata = pack_masks(self.masks(), self.backbone.fingerprint)
        change = self._loaded_change or json.dumps(self.scores.change())
        return tensors, metadata | {"prefix": self.prefix, "score_change": change}

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Restores the scores, see `MaskScores.load`. `dynamic` accepts any choice of tensors."""
        masks = unpack_masks(tensors, metadata, self.backbone.fingerprint)
        prefix = metadata.get("prefix", "visual.")  # the only one before the field was added
        if prefix != self.prefix:
            raise MethodError(
                f"the masks must be of weights with the prefix '{self.prefix}', got '{prefix}': "
                "load them with the method they were trained with"
            )
        self.scores.load(masks, any_subset=self.config.masked == "dynamic")
        self._loaded_change = metadata.get("score_change", "")

    def _logits(
        self, weights: Mapping[str, Tensor], inputs: Tensor, precision: Precision = "float32"
    ) -> Tensor:
        low = precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
            features, classifier = self.features(weights, inputs)
        return functional.normalize(features.float(), dim=-1) @ classifier.T

    def _divergence(self, student: Tensor, zero_shot: Tensor) -> Tensor:
        """T^2 times the cross entropy of softened predictions, as in the code: KL(teacher ||
        student) plus the teacher's entropy, which has no gradient if `teacher_share` is 1."""
        share, hardness = self.config.teacher_share, 1 / self.config.temperature
        teacher = zero_shot if share == 1 else share * zero_shot + (1 - share) * student
        expected = (teacher * hardness).softmax(-1) * (student * hardness).log_softmax(-1)
        return -expected.sum(-1).mean() / hardness**2


def flip_budget(schedule: Schedule, gap: float) -> float:
    """sum_t lr_t / gap: the distance that a constant gradient moves a score, in gaps."""
    return math.fsum(schedule.learning_rates) / gap


def flip_bound(schedule: Schedule, gap: float) -> float:
    """The same for the worst possible gradients: below 1, no bit can flip.

    Adam's step is lr_t |m| / sqrt(v) <= lr_t sqrt(sum_i a_i^2 / b_i) by Cauchy-Schwarz, with the
    weights a_i = (1 - beta1) beta1^(t-i) / (1 - beta1^t) of its first moment and b_i alike of the
    second: a geometric sum in beta1^2 / beta2.
    """
    beta1, beta2 = schedule.betas
    total, geometric, ratio = 0.0, 0.0, beta1 * beta1 / beta2
    for t, rate in enumerate(schedule.learning_rates, start=1):
        geometric = 1 + ratio * geometric
        first = (1 - beta1) / (1 - beta1**t)
        second = (1 - beta2) / (1 - beta2**t)
        total += rate * math.sqrt(first * first / second * geometric)
    return total / gap


def _backward(
    logits: Tensor, leaves: list[Tensor], cotangents: list[Tensor]
) -> list[tuple[Tensor, ...]]:
    """One tuple of gradients per cotangent, from one graph.

    One pass per cotangent: a batched pass (`is_grads_batched`) measured 9 % slower on a CPU at
    the embedded model's size, where most of the work is in the matrix products.
    """
    last = len(cotangents) - 1
    return [
        torch.autograd.grad(
            logits, leaves, cotangent, retain_graph=i < last, materialize_grads=True
        )
        for i, cotangent in enumerate(cotangents)
    ]
