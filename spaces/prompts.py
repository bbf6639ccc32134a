"""Learned prompts (CoOp, CoCoOp, ProGrad): how long a context, from what, how far and how fast."""

from __future__ import annotations

from collections.abc import Mapping

from spaces.declared import CROPS, Categorical, Float, Int, Range

_CONTEXT: Mapping[str, Range] = {
    # Up to the published lengths, which any class name of these data sets leaves room for.
    "context_tokens": Categorical((4, 8, 16)),
    "init_words": Categorical(("", "a photo of a")),
    "lr": Float(2e-4, 2e-1, log=True),
    "epochs": Int(5, 200, log=True),
    "weight_decay": Categorical((0.0, 5e-4, 5e-3)),
}

COOP: Mapping[str, Range] = {
    **_CONTEXT,
    "class_specific": Categorical((False, True)),
    "class_position": Categorical(("end", "middle")),
    **CROPS,
}
"""The four versions of the paper, and the optimiser's settings."""

PROGRAD: Mapping[str, Range] = {
    **_CONTEXT,
    "projection": Float(0.1, 1.0),
    "temperature": Float(0.5, 4.0, log=True),
    **CROPS,
}
"""How hard the gradient is held to the zero-shot model; contexts as in CoOp's main version."""

COCOOP: Mapping[str, Range] = {
    "context_tokens": Categorical((4, 8)),
    "init_words": Categorical(("", "a photo of a")),
    "reduction": Categorical((4, 16, 64)),
    "lr": Float(2e-4, 2e-2, log=True),
    "epochs": Int(2, 20, log=True),
    "batch_size": Categorical((1, 4)),
    **CROPS,
}
"""Few and short: every step passes all classes through the text tower for every image."""
