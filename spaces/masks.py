"""Mask tuning (R-AMT, arXiv:2307.15049): the method itself and the variants of its ablations.

Whether a mask bit can flip depends on the flip budget: the sum of all learning rates over the
distance between initial score and threshold. The space `rmt` searches the learning rate;
`rmt-budget` searches the budget and derives the learning rate from it, which keeps trials with
different epochs, batch sizes and thresholds comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from spaces.base import Value, searched
from spaces.declared import Categorical, DeclaredSpace, Float, Int, Range, Ranges, unless
from trainables.core.optim import OptimConfig
from trainables.methods.base import TaskFacts
from trainables.methods.gradient_rules import GRADIENT_RULES
from trainables.methods.masking.layers import WITH_PATCH
from trainables.methods.masking.rmt import MaskedTextLayers
from trainables.methods.masking.scores import Granularity
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# Upwards from the published rate, which flips few bits: 8e-5 to 2e-3, ImageNet 3e-5 to 7.5e-4.
_RATE = Float(1, 25, log=True, relative=True)
_EPOCHS = Int(10, 30)
_CROPS = Categorical((0.5, 0.8, 1.0))


def _layers(facts: TaskFacts, text: bool = False) -> Categorical:
    """Values of `masked`. A ResNet has no MLP blocks, and the paper masks all its convolutions."""
    blocks = ("mhsa", "mlp") if text or facts.tower == "vit" else ()
    return Categorical((*blocks, "all", "dynamic"))


_PATCH: Ranges = {"patch_embedding": Categorical((False, True), unless("masked", *WITH_PATCH))}


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
    return FlipBudgetSpace(facts, "rmt-budget", "rmt", _ranges(facts))


@dataclass(frozen=True)
class FlipBudgetSpace(DeclaredSpace):
    """A space whose learning rate follows from the parameter `flip_budget`."""

    @property
    def paper_parameters(self) -> dict[str, Value]:
        """Those of the table, and the budget of the published schedule."""
        config = self.paper
        rates = math.fsum(config.optim.learning_rates(self.facts.images))
        return super().paper_parameters | {"flip_budget": rates / _gap(config)}

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """A point of the table, with the learning rate that has the suggested budget."""
        found, paper = super().suggest(trial), self.paper
        budget = trial.suggest_float("flip_budget", 0.1, 64.0, log=True)
        lr = _rate(budget * _gap(found), found.optim, self.facts.images)
        return searched(replace(found, optim=replace(found.optim, lr=lr)), paper)


def _gap(config: TrialConfig) -> float:
    method: Any = config.method_config
    return float(method.init - method.threshold)


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
            "leak": Float(0.0, 1.0, when=_drops),
            "leak_kl": Float(0.0, 1.0, when=_drops_both),
            "granularity": Categorical(get_args(Granularity)),
            "temperature": Float(0.5, 8.0, log=True, when=unless("rule", "none")),
            "teacher_share": Float(0.3, 1.0, when=unless("rule", "none")),
            "lr": _RATE,
            "epochs": _EPOCHS,
            "crop_scale": _CROPS,
        },
    )


def _drops(chosen: Any) -> bool:
    return chosen["rule"] in ("gradient-dropout", "sign")


def _drops_both(chosen: Any) -> bool:
    return bool(chosen["rule"] == "sign")
