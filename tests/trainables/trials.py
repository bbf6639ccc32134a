"""Short trials for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainables.core.optim import OptimConfig
from trainables.methods.masking.rmt import MaskTuningConfig
from trainables.methods.taskres import TaskResConfig
from trainables.methods.zero_shot import ZeroShotConfig
from trainables.trial import TaskSpec, TrialConfig

TASK = TaskSpec(("digits",), "tiny", shots=(2,), seeds=(1,))
TWO_SEEDS = replace(TASK, shots=(1,), seeds=(1, 4))


def residual_trial(epochs: int = 4, **optim: Any) -> TrialConfig:
    """TaskRes with two steps per epoch."""
    settings = {"lr": 2e-3, "batch_size": 8} | optim
    return TrialConfig("taskres", "search", TaskResConfig(), OptimConfig(epochs=epochs, **settings))


def mask_trial(epochs: int = 3, crop_scale: float = 0.5, **config: Any) -> TrialConfig:
    """Masks that do flip, on random crops, with gradient dropout."""
    return TrialConfig(
        "rmt",
        "search",
        MaskTuningConfig(prompts="single", **config),
        OptimConfig(lr=4e-3, epochs=epochs, batch_size=8),
        crop_scale,
    )


def zero_shot_trial() -> TrialConfig:
    """A trial without training."""
    return TrialConfig(
        "zero-shot", "search", ZeroShotConfig(prompts="single"), OptimConfig(2e-3, 1, 8)
    )
