"""Mask tuning (R-AMT, arXiv:2307.15049): the method itself and the variants of its ablations.

Whether a mask bit can flip depends on the flip budget: the sum of all learning rates over the
distance between initial score and threshold. With a budget of 1 the first bits flip, those whose
gradients always have the same sign. The spaces search the budget and derive the learning rate from
it, which keeps trials with different epochs, batch sizes and thresholds comparable.

All scores start at the same value, and Adam moves them at the same speed. What ranks the weights is
the noise of their gradients: it delays the scores whose gradients change sign. A schedule of few
steps, with the whole training set as one batch, has no noise: about half of all bits flip in the
same step, and the model collapses. Trials therefore have batches of a twentieth of the training
set and at least 100 steps, so that a step moves a score by no more than a tenth of the distance,
10 steps being what Adam's first moment averages over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from spaces.conditions import Condition
from spaces.declared import Categorical, DeclaredSpace, Float, Int, Range, Ranges
from trainables.core.optim import OptimConfig
from trainables.fields import Field, Settings
from trainables.methods.base import TaskFacts
from trainables.methods.gradient_rules import GRADIENT_RULES
from trainables.methods.masking.rmt import MaskedTextLayers
from trainables.methods.masking.scores import Granularity

_STEPS_PER_EPOCH = 20
_STEPS = 100
"""Fewest steps of a trial."""
_BUDGET = 0.1 * _STEPS
"""Largest flip budget."""
_CROPS = Categorical((0.5, 0.8, 1.0))


def _layers(facts: TaskFacts, text: bool = False) -> Categorical:
    """Values of `masked`. A ResNet has no MLP blocks, and the paper masks all its convolutions."""
    blocks = ("mhsa", "mlp") if text or facts.tower == "vit" else ()
    return Categorical((*blocks, "all", "dynamic"))


_PATCH: Ranges = {"patch_embedding": Categorical((False, True))}


def _ranges(facts: TaskFacts) -> dict[str, Range]:
    return {
        "masked": _layers(facts),
        **_PATCH,
        "threshold": Float(1e-3, 9e-3),
        "init": Float(1e-2, 2e-2),
        "leak": Float(0.0, 1.0),
        "crop_scale": _CROPS,
        "norm_weight": Categorical((0.0, 1e-5, 1e-4, 1e-3, 1e-2)),
        **_schedule(facts.images),
    }


def _schedule(images: int) -> Ranges:
    """Batches, epochs and budgets with which bits flip one after the other."""
    large = [size for size in (8, 16, 32, 64) if images // size >= _STEPS_PER_EPOCH]
    small = [size for size in (4, 2) if images // size >= _STEPS_PER_EPOCH]
    sizes = large or small[:1] or [1]
    epochs = max(5, math.ceil(_STEPS / max(1, images // max(sizes))))
    return {
        "batch_size": Categorical(tuple(sizes), apart=True),
        "epochs": Int(epochs, 3 * epochs, apart=True),
        "flip_budget": Float(1.0, _BUDGET, apart=True),
    }


def rmt_space(facts: TaskFacts, name: str = "rmt") -> MaskSpace:
    """Masked layers, threshold, initial score, leak, norm loss, batch, epochs and flip budget."""
    return MaskSpace(facts, name, "rmt", _ranges(facts))


@dataclass(frozen=True)
class MaskSpace(DeclaredSpace):
    """A space whose learning rate follows from the parameter `flip_budget`, unless the user fixes
    or searches the learning rate itself.

    Trial 0, which may be unable to flip a bit, lies outside the ranges of the schedule: these are
    suggested as soon as another parameter differs from it.
    """

    exclusive: ClassVar[tuple[str, ...]] = ("lr", "flip_budget")

    @property
    def fields(self) -> Mapping[str, Field]:
        """Those of mask tuning, and the flip budget."""
        doc = "Sum of all learning rates over the distance of initial score and threshold."
        return {**super().fields, "flip_budget": Field(float, doc)}

    def condition(self, name: str) -> Condition:
        if name == "flip_budget" and "lr" in {*self.fixed, *self.ranges}:
            return Condition("unless lr is fixed or searched", (), lambda chosen: False)
        return super().condition(name)

    def values(self, settings: Any) -> dict[str, Any]:
        """Field -> value, with the budget of the schedule; NaN for settings that break a rule."""
        budget = math.nan
        if not (settings.optim.problems() or settings.method_config.problems()):
            rates = math.fsum(settings.optim.learning_rates(self.facts.images))
            budget = rates / _gap(settings)
        return super().values(settings) | {"flip_budget": budget}

    def with_values(self, settings: Settings, chosen: Mapping[str, Any]) -> Settings:
        """The same with other values, and with the learning rate that has the chosen budget."""
        others = {name: value for name, value in chosen.items() if name != "flip_budget"}
        found = super().with_values(settings, others)
        # A published learning rate stays as it is, to the last bit.
        same = self.values(found)["flip_budget"]
        if math.isnan(same) or chosen.get("flip_budget") in (None, same):
            return found
        lr = _rate(chosen["flip_budget"] * _gap(found), found.optim, self.facts.images)
        return replace(found, optim=replace(found.optim, lr=lr))


def _gap(settings: Any) -> float:
    return float(settings.method_config.init - settings.method_config.threshold)


def _rate(total: float, optim: OptimConfig, images: int) -> float:
    """The base learning rate whose schedule sums to `total`."""
    unit = math.fsum(replace(optim, lr=1.0).learning_rates(images))
    return float(f"{total / unit:.12g}")  # rounded, so that the paper's comes back exactly


def variants_space(
    facts: TaskFacts, method: Literal["rmt", "rmt-text", "rmt-both"] = "rmt"
) -> MaskSpace:
    """Masked layers of either tower, gradient rule, leaks, granularity, temperature, teacher,
    crops, batch, epochs and flip budget."""
    image: Ranges = _PATCH if method != "rmt-text" else {}
    text: Ranges = {"masked_text": Categorical(get_args(MaskedTextLayers))}
    return MaskSpace(
        facts,
        "rmt-variants" if method == "rmt" else method,
        method,
        {
            "masked": _layers(facts, text=method == "rmt-text"),
            **image,
            **(text if method == "rmt-both" else {}),
            "rule": Categorical(tuple(GRADIENT_RULES)),
            "leak": Float(0.0, 1.0),
            "leak_kl": Float(0.0, 1.0),
            "granularity": Categorical(get_args(Granularity)),
            "temperature": Float(0.5, 8.0, log=True),
            "teacher_share": Float(0.3, 1.0),
            "crop_scale": _CROPS,
            **_schedule(facts.images),
        },
    )
