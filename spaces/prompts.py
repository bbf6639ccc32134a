"""Learned prompts (CoOp, CoCoOp, ProGrad): how long a context, from what, how far and how fast."""

from __future__ import annotations

from collections.abc import Mapping

from spaces.declared import CROPS, Among, Range, Reals, Whole

_CONTEXT: Mapping[str, Range] = {
    # Up to the published lengths, which any class name of these data sets leaves room for.
    "context_tokens": Among((4, 8, 16)),
    "init_words": Among(("", "a photo of a")),
    "lr": Reals(2e-4, 2e-1, log=True),
    "epochs": Whole(5, 200, log=True),
    "weight_decay": Among((0.0, 5e-4, 5e-3)),
}

COOP: Mapping[str, Range] = {
    **_CONTEXT,
    "class_specific": Among((False, True)),
    "class_position": Among(("end", "middle")),
    **CROPS,
}
"""The four versions of the paper, and the optimiser's settings."""

PROGRAD: Mapping[str, Range] = {
    **_CONTEXT,
    "projection": Reals(0.1, 1.0),
    "temperature": Reals(0.5, 4.0, log=True),
    **CROPS,
}
"""How hard the gradient is held to the zero-shot model; contexts as in CoOp's main version."""

COCOOP: Mapping[str, Range] = {
    "context_tokens": Among((4, 8)),
    "init_words": Among(("", "a photo of a")),
    "reduction": Among((4, 16, 64)),
    "lr": Reals(2e-4, 2e-2, log=True),
    "epochs": Whole(2, 20, log=True),
    "batch_size": Among((1, 4)),
    **CROPS,
}
"""Few and short: every step passes all classes through the text tower for every image."""
