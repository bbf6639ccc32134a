"""What a trial is: plain frozen records that travel as JSON between driver, workers and disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.methods.base import MethodConfig
from trainables.methods.registry import METHODS
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class TaskSpec:
    """The few-shot task that every trial of a sweep solves."""

    dataset: str
    """Registry name of the data set."""
    backbone: str
    """Backbone specification, e.g. `tiny` or `ViT-B-16:openai`."""
    shots: int
    """Labelled training images a class."""
    seeds: tuple[int, ...]
    """Seeds of the few-shot draws; the objective is the mean over them."""


@dataclass(frozen=True)
class TrialConfig:
    """One point of a space, resolved: everything that training depends on but the task."""

    method: str
    """Registry name of the method."""
    preset: str
    """`paper`, `reference` or `clean` where the configuration is exactly that preset, else
    `search`."""
    method_config: MethodConfig
    """The method's own configuration."""
    optim: OptimConfig
    """Optimiser and schedule."""
    crop_scale: float = 1.0
    """Smallest share of an image's area that a random crop shows; 1 trains on the test view."""
    seed: int = 0
    """Seeds the order of images, the crops and the method's own draws."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrialConfig:
        """The inverse of `to_dict`."""
        fields = dict(plain)
        fields["method_config"] = METHODS[fields["method"]].Config(**fields["method_config"])
        fields["optim"] = OptimConfig(**fields["optim"])
        return cls(**fields)

    def flat(self) -> dict[str, object]:
        """Field -> value without nesting, as a person reads it in a table of parameters."""
        plain: dict[str, dict[str, object]] = self.to_dict()
        return plain.pop("method_config") | plain.pop("optim") | plain

    def fingerprint(self) -> str:
        """Hex digest of the configuration."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def problems(self) -> list[str]:
        """Every broken rule of method and optimiser; empty when all is well."""
        found = [*self.method_config.problems(), *self.optim.problems()]
        if not 0 < self.crop_scale <= 1:
            found.append(f"crop_scale must lie in (0, 1], got {self.crop_scale}: use e.g. 0.5")
        return found
