"""The published settings of mask tuning (Zheng et al., ICCV 2023, section 4.1), and our mend."""

from __future__ import annotations

import math
from dataclasses import replace

from trainables.methods.base import Preset
from trainables.optim import OptimConfig

CLEAN_FLIP_BUDGET = 6.0
"""sum of learning rates / (init - threshold) that the `clean` presets aim at: that of the
released schedule at 8 shots on the middle-sized data sets (Caltech101, Flowers102 and alike)."""


def published_leak(dataset: str, shots: int) -> float:
    """0.3 at 16 shots but for the three largest data sets, else 1."""
    weak = shots >= 16 and dataset not in ("imagenet", "sun397", "food101")
    return 0.3 if weak else 1.0


def mask_optim(name: Preset, gap: float, dataset: str, images: int) -> OptimConfig:
    """Adam with a cosine. The batch size is the code's: the paper gives none.

    `clean` takes a learning rate that gives every few-shot set the same flip budget
    (`CLEAN_FLIP_BUDGET`) over `gap`, init - threshold: the published schedule provably cannot flip
    a bit in 90 steps or fewer, which is all that most data sets take at one shot.
    """
    lr, epochs = (3e-5, 10) if dataset == "imagenet" else (8e-5, 30)
    optim = OptimConfig(lr=lr, epochs=epochs, batch_size=32)
    if name != "clean":
        return optim
    unit = math.fsum(replace(optim, lr=1.0).learning_rates(images))
    return replace(optim, lr=CLEAN_FLIP_BUDGET * gap / unit)
