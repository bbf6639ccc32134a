"""Mask tuning (R-AMT, arXiv:2307.15049): the method itself and the variants of its ablations.

Whether a mask bit can flip depends on the flip budget: the sum of all learning rates over the
distance between initial score and threshold. The space `rmt` searches the learning rate;
`rmt-budget` searches the budget and derives the learning rate from it, which keeps trials with
different epochs, batch sizes and thresholds comparable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from spaces.declared import Categorical, DeclaredSpace, Float, Int, Range, Ranges
from trainables.core.optim import OptimConfig
from trainables.fields import Field, Settings
from trainables.methods.base import TaskFacts
from trainables.methods.gradient_rules import GRADIENT_RULES
from trainables.methods.masking.rmt import MaskedTextLayers
from trainables.methods.masking.scores import Granularity

# Upwards from the published rate, which flips few bits: 8e-5 to 2e-3, ImageNet 3e-5 to 7.5e-4.
_RATE = Float(1, 25, log=True, relative=True)
_EPOCHS = Int(10, 30)
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
        "batch_size": Categorical((8, 16, 32, 64)),
        "epochs": _EPOCHS,
        "crop_scale": _CROPS,
        "norm_weight": Categorical((0.0, 1e-5, 1e-4, 1e-3, 1e-2)),
    }


def rmt_space(facts: TaskFacts) -> DeclaredSpace:
    """Masked layers, threshold, initial score, leak, norm loss, step size, batch and epochs."""
    return DeclaredSpace(facts, "rmt", "rmt", {**_ranges(facts), "lr": _RATE})


def rmt_budget_space(facts: TaskFacts) -> FlipBudgetSpace:
    """As `rmt_space`, with the flip budget in place of the learning rate."""
    budget: Ranges = {"flip_budget": Float(0.1, 64.0, log=True)}
    return FlipBudgetSpace(facts, "rmt-budget", "rmt", {**_ranges(facts), **budget})


@dataclass(frozen=True)
class FlipBudgetSpace(DeclaredSpace):
    """A space whose learning rate follows from the parameter `flip_budget`."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """Those of mask tuning, with the flip budget in place of the learning rate."""
        return {name: field for name, field in super().fields.items() if name != "lr"} | {
            "flip_budget": Field(
                float, "Sum of all learning rates over the distance of initial score and threshold."
            )
        }

    def values(self, settings: Any) -> dict[str, Any]:
        """Field -> value, with the budget of the schedule."""
        rates = math.fsum(settings.optim.learning_rates(self.facts.images))
        return super().values(settings) | {"flip_budget": rates / _gap(settings)}

    def with_values(self, settings: Settings, chosen: Mapping[str, Any]) -> Settings:
        """The same with other values, and with the learning rate that has the chosen budget."""
        others = {name: value for name, value in chosen.items() if name != "flip_budget"}
        found = super().with_values(settings, others)
        # A published learning rate stays as it is, to the last bit.
        if chosen.get("flip_budget") in (None, self.values(found)["flip_budget"]):
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
) -> DeclaredSpace:
    """Masked layers of either tower, gradient rule, leaks, granularity, temperature, teacher, step
    size, epochs and crops."""
    image: Ranges = _PATCH if method != "rmt-text" else {}
    text: Ranges = {"masked_text": Categorical(get_args(MaskedTextLayers))}
    return DeclaredSpace(
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
            "lr": _RATE,
            "epochs": _EPOCHS,
            "crop_scale": _CROPS,
        },
    )
