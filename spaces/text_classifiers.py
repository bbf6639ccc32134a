"""Classifiers made of text features: TaskRes (arXiv:2211.10277), its enhanced base, and the
adapters of its ablations."""

from __future__ import annotations

from spaces.declared import CROPS, Categorical, Float, Int, Ranges

_WEIGHT_DECAY = Categorical((0.0, 5e-4))
"""None, as in the paper, or the released code's."""

TASKRES: Ranges = {
    "residual": Categorical(("text", "image", "both")),
    "normalise_base": Categorical((False, True)),
    "alpha": Float(0.05, 3.0, log=True),
    "learn_alpha": Categorical((False, True)),
    "lr": Float(1e-4, 1e-1, log=True),
    "weight_decay": Categorical((0.0, 1e-5, 1e-4, 5e-4, 1e-3, 1e-2)),
    "epochs": Int(25, 200),
    "warmup_epochs": Int(0, 5),
    "warmup_lr": Float(1e-6, 1e-3, log=True),
    **CROPS,
}
"""Residual, base, alpha (fixed or learned), step size, weight decay, epochs, warm-up and crops."""

ENHANCED_BASE: Ranges = {
    "lr": Float(1e-5, 1e-2, log=True),
    "epochs": Int(10, 100),
    "weight_decay": _WEIGHT_DECAY,
    "warmup_epochs": Int(0, 5),
    **CROPS,
}
"""Training of the text projection."""

TEXT_ADAPTER: Ranges = {
    "keep_base": Categorical((True, False)),
    "alpha": Float(0.05, 3.0, log=True),
    "reduction": Categorical((1, 2, 4, 8, 16)),
    "lr": Float(1e-4, 1e-2, log=True),
    "epochs": Int(25, 200),
    "weight_decay": _WEIGHT_DECAY,
    "warmup_epochs": Int(0, 5),
    **CROPS,
}
"""The adapter alone or beside the base, its weight and width, and its training."""

LINEAR_ADAPTER: Ranges = {
    "adapted": Categorical(("text", "image")),
    "bias": Categorical((True, False)),
    "alpha": Float(0.05, 3.0, log=True),
    "lr": Float(1e-5, 1e-2, log=True),
    "epochs": Int(25, 200),
    "weight_decay": _WEIGHT_DECAY,
    "warmup_epochs": Int(0, 5),
    **CROPS,
}
"""The adapter's place, bias and weight, and its training."""
