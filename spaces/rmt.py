"""Regularised mask tuning (arXiv:2307.15049): which weights may be dropped, and how easily.

What decides whether a bit can flip is the flip budget, the sum of all learning rates over the
distance from the initial score to the threshold. The space `rmt` varies the learning rate;
`rmt-budget` varies the budget instead and derives the learning rate from it, which keeps trials
with different epochs, batch sizes and thresholds comparable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from spaces.base import TaskFacts, preset_trial
from trainables.methods.masking.layers import Masked
from trainables.methods.masking.rmt import MaskTuningConfig
from trainables.optim import OptimConfig
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class MaskSpace:
    """Threshold, initial score, leak, step size, masked layers, norm loss, batch and epochs."""

    setting: TaskFacts
    """The task."""
    vary: Literal["lr", "flip_budget"] = "lr"
    """What sets the size of a step."""

    @property
    def name(self) -> str:
        """Registry name."""
        return "rmt" if self.vary == "lr" else "rmt-budget"

    @property
    def paper(self) -> TrialConfig:
        """Section 4.1 of the paper."""
        return preset_trial("rmt", "paper", self.setting)

    @property
    def paper_parameters(self) -> dict[str, float | int | str | bool]:
        """See `paper`."""
        paper = self.paper
        optim, method = paper.optim, paper.method_config
        assert isinstance(method, MaskTuningConfig)
        gap = method.init - method.threshold
        step = {
            "lr": optim.lr,
            "flip_budget": sum(optim.learning_rates(self.setting.images)) / gap,
        }
        return {
            "masked": method.masked,
            self.vary: step[self.vary],
            "threshold": method.threshold,
            "init": method.init,
            "leak": method.leak,
            "patch_embedding": method.patch_embedding,
            "norm_loss": method.norm_weight > 0,
            "batch_size": optim.batch_size,
            "epochs": optim.epochs,
            "crop_scale": paper.crop_scale,
        }

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """Conditional: the norm loss has a weight only where there is one."""
        paper = self.paper
        method = paper.method_config
        assert isinstance(method, MaskTuningConfig)
        masked = cast("Masked", trial.suggest_categorical("masked", self._layers()))
        patch_embedding = trial.suggest_categorical("patch_embedding", [False, True])
        threshold = trial.suggest_float("threshold", 1e-3, 9e-3)
        init = trial.suggest_float("init", 1e-2, 2e-2)
        leak = trial.suggest_float("leak", 0.0, 1.0)
        batch_size = trial.suggest_categorical("batch_size", [8, 16, 32, 64])
        epochs = trial.suggest_int("epochs", 10, 30, step=5)
        crop_scale = trial.suggest_categorical("crop_scale", [0.5, 0.8, 1.0])
        norm_weight = 0.0
        if trial.suggest_categorical("norm_loss", [False, True]):
            norm_weight = trial.suggest_float("norm_weight", 1e-5, 1e-2, log=True)
        optim = replace(paper.optim, batch_size=batch_size, epochs=epochs)
        if self.vary == "lr":
            # From the published rate, which flips few bits, upwards: 8e-5 to 2e-3 but for ImageNet.
            lr = trial.suggest_float("lr", paper.optim.lr, paper.optim.lr * 25, log=True)
        else:
            budget = trial.suggest_float("flip_budget", 0.1, 64.0, log=True)
            lr = self._rate(budget, init - threshold, optim)
        found = replace(
            paper,
            method_config=replace(
                method,
                masked=masked,
                patch_embedding=patch_embedding,
                threshold=threshold,
                init=init,
                leak=leak,
                norm_weight=norm_weight,
            ),
            optim=replace(optim, lr=lr),
            crop_scale=crop_scale,
        )
        return paper if found == paper else replace(found, preset="search")

    def _layers(self) -> list[Masked]:
        # A ResNet has no MLP blocks, and the paper masks all of its convolutions.
        vit = self.setting.tower == "vit"
        return ["mhsa", "mlp", "all", "dynamic"] if vit else ["all", "dynamic"]

    def _rate(self, budget: float, gap: float, optim: OptimConfig) -> float:
        """The base learning rate whose schedule sums to `budget` times `gap`."""
        unit = sum(replace(optim, lr=1.0).learning_rates(self.setting.images))
        return float(f"{budget * gap / unit:.12g}")  # rounded, so that the paper's comes back exact
