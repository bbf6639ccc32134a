"""The variants of mask tuning (R-AMT's ablations): which gradients count, what one score stands
for, which tower. The spaces of the method itself, with its thresholds, are in `rmt.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from spaces.base import TaskFacts, preset_trial
from trainables.methods.masking.gradient_rules import GRADIENT_RULES
from trainables.methods.masking.mask_method import MaskConfig
from trainables.methods.masking.mask_scores import Granularity
from trainables.methods.masking.rmt_both import MaskedTextLayers
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

_DROPPING = ("gradient-dropout", "sign")


@dataclass(frozen=True)
class MaskVariantSpace:
    """Masked layers, rule, leaks, granularity, temperature, teacher, step size, epochs, crops."""

    setting: TaskFacts
    """The task."""
    method: Literal["rmt", "rmt-text", "rmt-both"] = "rmt"
    """Registry name of the method: which tower is masked."""

    @property
    def name(self) -> str:
        """Registry name."""
        return "rmt-variants" if self.method == "rmt" else self.method

    @property
    def paper(self) -> TrialConfig:
        """Section 4.1 of the paper, whatever the tower."""
        return preset_trial(self.method, "paper", self.setting)

    @property
    def paper_parameters(self) -> dict[str, float | int | str | bool]:
        """See `paper`."""
        values = self.paper.flat()
        names = ["masked", *self._layers_of_towers, "rule", "leak", "granularity"]
        names += ["temperature", "teacher_share", "lr", "epochs", *self._crops]
        return {name: values[name] for name in names}  # type: ignore[misc]

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """Conditional: leaks exist where something is dropped, temperature and teacher where the
        rule listens to one."""
        paper = self.paper
        method: dict[str, Any] = {"masked": trial.suggest_categorical("masked", self._masked)}
        for name, values in self._layers_of_towers.items():
            method[name] = trial.suggest_categorical(name, values)
        rule = method["rule"] = trial.suggest_categorical("rule", list(GRADIENT_RULES))
        if rule in _DROPPING:
            method["leak"] = trial.suggest_float("leak", 0.0, 1.0)
        if rule == "sign":
            method["leak_kl"] = trial.suggest_float("leak_kl", 0.0, 1.0)
        granularity = trial.suggest_categorical("granularity", list(get_args(Granularity)))
        method["granularity"] = granularity
        if rule != "none":
            method["temperature"] = trial.suggest_float("temperature", 0.5, 8.0, log=True)
            method["teacher_share"] = trial.suggest_float("teacher_share", 0.3, 1.0)
        # As in `rmt`: from the published rate, which flips few bits, upwards.
        lr = trial.suggest_float("lr", paper.optim.lr, paper.optim.lr * 25, log=True)
        epochs = trial.suggest_int("epochs", 10, 30, step=5)
        crops = {name: trial.suggest_categorical(name, v) for name, v in self._crops.items()}
        config = paper.method_config
        assert isinstance(config, MaskConfig)
        found = replace(
            paper,
            method_config=replace(config, **method),
            optim=replace(paper.optim, lr=lr, epochs=epochs),
            **crops,  # type: ignore[arg-type]
        )
        return paper if found == paper else replace(found, preset="search")

    @property
    def _masked(self) -> list[str]:
        # A ResNet has no MLP blocks, and the paper masks all of its convolutions.
        blocks = self.method == "rmt-text" or self.setting.tower == "vit"
        return ["mhsa", "mlp", "all", "dynamic"] if blocks else ["all", "dynamic"]

    @property
    def _layers_of_towers(self) -> dict[str, list[Any]]:
        """What else the towers of this method leave open."""
        image = {"patch_embedding": [False, True]} if self.method != "rmt-text" else {}
        text = {"masked_text": list(get_args(MaskedTextLayers))}
        return image | (text if self.method == "rmt-both" else {})

    @property
    def _crops(self) -> dict[str, list[float]]:
        return {"crop_scale": [0.5, 0.8, 1.0]} if self.setting.pixels else {}
