"""TaskRes (arXiv:2211.10277): how far, how fast and how long the text classifier may move."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from spaces.base import TaskFacts, preset_trial
from trainables.methods.taskres import Residual, TaskResConfig
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class TaskResSpace:
    """Where the residual is, the base's length, alpha (fixed or learned), learning rate, weight
    decay, epochs, warm-up and crops."""

    setting: TaskFacts
    """The task."""
    name: str = "taskres"
    """Registry name."""

    @property
    def paper(self) -> TrialConfig:
        """Section 4.1 of the paper."""
        return preset_trial("taskres", "paper", self.setting)

    @property
    def paper_parameters(self) -> dict[str, float | int | str | bool]:
        """See `paper`."""
        optim, method = self.paper.optim, self.paper.method_config
        assert isinstance(method, TaskResConfig)
        return {
            "residual": method.residual,
            "normalise_base": method.normalise_base,
            "learn_alpha": False,
            "alpha": method.alpha,
            "lr": optim.lr,
            "decay": False,
            "epochs": optim.epochs,
            "warmup_epochs": optim.warmup_epochs,
            "warmup_lr": optim.warmup_lr,
            **({"crop_scale": self.paper.crop_scale} if self.setting.pixels else {}),
        }

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """Conditional: a learned alpha starts below 1, the range of tanh; the strength of the
        weight decay and the warm-up's rate exist only where there is decay and warm-up."""
        paper = self.paper
        method = paper.method_config
        assert isinstance(method, TaskResConfig)
        residual = trial.suggest_categorical("residual", list(get_args(Residual)))
        normalise_base = trial.suggest_categorical("normalise_base", [False, True])
        learn_alpha = trial.suggest_categorical("learn_alpha", [False, True])
        if learn_alpha:
            alpha = trial.suggest_float("alpha_start", 0.1, 0.9)
        else:
            alpha = trial.suggest_float("alpha", 0.05, 3.0, log=True)
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        decay = trial.suggest_categorical("decay", [False, True])
        weight_decay = trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True) if decay else 0.0
        epochs = trial.suggest_int("epochs", 25, 200, step=25)
        warmup_epochs = trial.suggest_int("warmup_epochs", 0, 5)
        warmup_lr = paper.optim.warmup_lr
        if warmup_epochs:
            warmup_lr = trial.suggest_float("warmup_lr", 1e-6, 1e-3, log=True)
        crop_scale = 1.0
        if self.setting.pixels:  # 0.08 as in the authors' code, 0.5 as in R-AMT and Tip-Adapter
            crop_scale = trial.suggest_categorical("crop_scale", [1.0, 0.5, 0.08])
        found = replace(
            paper,
            crop_scale=crop_scale,
            method_config=replace(
                method,
                residual=residual,
                normalise_base=normalise_base,
                alpha=alpha,
                learn_alpha=learn_alpha,
            ),
            optim=replace(
                paper.optim,
                lr=lr,
                weight_decay=weight_decay,
                epochs=epochs,
                warmup_epochs=warmup_epochs,
                warmup_lr=warmup_lr,
            ),
        )
        return paper if found == paper else replace(found, preset="search")
