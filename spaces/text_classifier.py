"""Classifiers made of the text features: TaskRes's enhanced base, and the adapter that its
ablation compares it with (arXiv:2211.10277)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spaces.base import TaskFacts
from spaces.declared import CROPS, Categorical, DeclaredSpace, Float, Int, Range
from trainables.methods.text_adapter import TextAdapterConfig
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

ENHANCED_BASE: Mapping[str, Range] = {
    "lr": Float(1e-5, 1e-2, log=True),
    "epochs": Int(10, 100),
    "weight_decay": Categorical((0.0, 5e-4)),
    "warmup_epochs": Int(0, 5),
    **CROPS,
}
"""How far the text projection may move, how fast and from what views."""

_ADAPTER: Mapping[str, Range] = {
    "reduction": Categorical((1, 2, 4, 8, 16)),
    "lr": Float(1e-4, 1e-2, log=True),
    "epochs": Int(25, 200),
    "weight_decay": Categorical((0.0, 5e-4)),
    "warmup_epochs": Int(0, 5),
    **CROPS,
}
_BESIDE: Mapping[str, Range] = {"alpha": Float(0.05, 3.0, log=True)}


@dataclass(frozen=True)
class TextAdapterSpace:
    """Whether the base is kept, the adapter's weight and width, learning rate, weight decay,
    epochs, warm-up and crops."""

    setting: TaskFacts
    """The task."""
    name: str = "text-adapter"
    """Registry name."""

    @property
    def paper(self) -> TrialConfig:
        """The better row of table 2, which keeps the base."""
        return self._declared(keep_base=True).paper

    @property
    def paper_parameters(self) -> dict[str, float | int | str | bool]:
        """See `paper`."""
        return {"keep_base": True} | self._declared(keep_base=True).paper_parameters

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """Conditional: the adapter has a weight only beside the base."""
        keep_base = trial.suggest_categorical("keep_base", [True, False])
        found = self._declared(keep_base).suggest(trial)
        if keep_base:
            return found
        method = found.method_config
        assert isinstance(method, TextAdapterConfig)
        return replace(found, preset="search", method_config=replace(method, keep_base=False))

    def _declared(self, keep_base: bool) -> DeclaredSpace:
        ranges = {**_BESIDE, **_ADAPTER} if keep_base else _ADAPTER
        return DeclaredSpace(self.setting, self.name, "text-adapter", ranges)
