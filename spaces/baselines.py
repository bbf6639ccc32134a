"""Baselines that the papers and their successors compare with.

The intervals include the grids that the authors search, if they search any.
"""

from __future__ import annotations

from collections.abc import Mapping

from spaces.declared import CROPS, Categorical, DeclaredSpace, Float, Int, Ranges
from trainables.methods.base import TaskFacts

ON_FEATURES: Mapping[str, Ranges] = {
    # CLIP sweeps C from 1e-6 to 1e6.
    "linear-probe": {"inverse_penalty": Float(1e-6, 1e6, log=True), **CROPS},
    "clip-adapter": {
        "ratio": Float(0.05, 1.0),
        "reduction": Categorical((2, 4, 8, 16)),
        "lr": Float(1e-5, 1e-2, log=True),
        "epochs": Int(25, 200),
        **CROPS,
    },
    # The authors' grids end between 3 and 50, depending on the data set.
    "tip-adapter": {
        "alpha": Float(0.1, 50.0, log=True),
        "beta": Float(0.1, 50.0, log=True),
        **CROPS,
    },
    "tip-adapter-f": {
        "alpha": Float(0.1, 50.0, log=True),
        "beta": Float(0.1, 50.0, log=True),
        "lr": Float(1e-4, 1e-2, log=True),
        "weight_decay": Float(1e-4, 1e-1, log=True),
        "epochs": Int(10, 100),
        **CROPS,
    },
    "cross-modal": {
        "text_share": Float(0.0, 0.8),
        "lr": Float(1e-5, 1e-2, log=True),
        "weight_decay": Float(1e-4, 1e-1, log=True),
        "batch_size": Categorical((4, 16, 64)),
        "epochs": Int(25, 300),
        **CROPS,
    },
    "lp-plus-plus": {
        "iterations": Int(30, 1000, log=True),
        "step": Float(0.1, 4.0, log=True),
        "start_alpha": Float(10.0, 1000.0, log=True),
        "inertia": Categorical((0.0, 0.9)),
        **CROPS,
    },
    "clap": {
        "penalty": Float(1e-2, 1e2, log=True),
        "per_class": Categorical((True, False)),
        "lr": Float(1e-3, 1.0, log=True),
        "epochs": Int(50, 300),
        **CROPS,
    },
    "gda": {
        "alpha": Float(1e-4, 1e2, log=True),
        "shrinkage": Float(1e-2, 1e1, log=True),
        **CROPS,
    },
}
"""Method -> ranges, for methods on frozen features. Each space is named after its method."""

_CONTEXT: Ranges = {
    # Up to the published lengths, for which every class name of these data sets leaves room.
    "context_tokens": Categorical((4, 8, 16)),
    "init_words": Categorical(("", "a photo of a")),
    "lr": Float(2e-4, 2e-1, log=True),
    "epochs": Int(5, 200, log=True),
    "weight_decay": Categorical((0.0, 5e-4, 5e-3)),
}

LEARNED_PROMPTS: Mapping[str, Ranges] = {
    # The four versions of the paper.
    "coop": {
        **_CONTEXT,
        "class_specific": Categorical((False, True)),
        "class_position": Categorical(("end", "middle")),
        **CROPS,
    },
    "prograd": {
        **_CONTEXT,
        "projection": Float(0.1, 1.0),
        "temperature": Float(0.5, 4.0, log=True),
        **CROPS,
    },
    "kgcoop": {
        **_CONTEXT,
        "knowledge_weight": Float(0.1, 100.0, log=True),
        **CROPS,
    },
    # Short contexts and few epochs: each step encodes every class once per image.
    "cocoop": {
        "context_tokens": Categorical((4, 8)),
        "init_words": Categorical(("", "a photo of a")),
        "reduction": Categorical((4, 16, 64)),
        "lr": Float(2e-4, 2e-2, log=True),
        "epochs": Int(2, 20, log=True),
        "batch_size": Categorical((1, 4)),
        **CROPS,
    },
}
"""Method -> ranges, for methods that learn the text tower's input."""

_LORA: Ranges = {
    "matrices": Categorical(("v", "q,v", "q,k,v", "q,k,v,o", "q,k,v,o,up,down")),
    "rank": Categorical((1, 2, 4, 8, 16)),
    "lora_alpha": Float(0.25, 16.0, log=True),
    "dropout": Float(0.0, 0.5),
    "lr": Float(2e-5, 2e-3, log=True),
    "weight_decay": Float(1e-4, 1e-1, log=True),
    "epochs": Int(10, 400, log=True),
    **CROPS,
}

FINE_TUNING: Ranges = {
    "lr": Float(1e-7, 1e-3, log=True),
    "batch_size": Categorical((8, 16, 32, 64)),
    "epochs": Int(5, 100, log=True),
    "optimiser": Categorical(("adam", "adamw", "sgd")),
    "weight_decay": Categorical((0.0, 1e-4, 1e-2, 1e-1)),
    **CROPS,
}
"""Training of the whole image encoder."""

VPT: Ranges = {
    "tokens": Int(4, 50, log=True),
    "deep": Categorical((True, False)),
    "lr": Float(2.5e-4, 2.5e-1, log=True),
    "batch_size": Categorical((4, 8, 16, 32)),
    "epochs": Int(5, 200, log=True),
    "warmup_epochs": Int(0, 2),
    **CROPS,
}
"""Number of tokens, the blocks that have their own, and their training."""

MAPLE: Ranges = {
    "context_tokens": Categorical((2, 4)),
    "depth": Int(1, 12),
    "init_words": Categorical(("", "a photo of a")),
    "lr": Float(2e-4, 2e-1, log=True),
    "batch_size": Categorical((4, 8, 16, 32)),
    "epochs": Int(5, 200, log=True),
    "warmup_epochs": Int(0, 2),
    **CROPS,
}
"""Number, depth and initial values of the prompts in both towers, and their training."""

PROMPT_SRC: Ranges = {
    "context_tokens": Categorical((2, 4)),
    "image_tokens": Int(2, 16, log=True),
    "depth": Int(1, 12),
    "text_weight": Float(1.0, 100.0, log=True),
    "image_weight": Float(1.0, 100.0, log=True),
    "logits_weight": Categorical((0.0, 1.0, 10.0)),
    "average_center": Float(0.3, 1.0),
    "average_width": Float(0.02, 1.0, log=True),
    "lr": Float(2.5e-4, 2.5e-1, log=True),
    "batch_size": Categorical((4, 8, 16, 32)),
    "epochs": Int(10, 200, log=True),
    "warmup_epochs": Int(0, 2),
    **CROPS,
}
"""Number and depth of the prompts, weights of the losses, average over epochs, and training."""


PLOT: Ranges = {
    "text_prompts": Categorical((1, 2, 4)),
    "image_prompts": Categorical((1, 2, 4)),
    "context_tokens": Categorical((2, 4)),
    "image_tokens": Int(1, 8, log=True),
    "entropy": Float(0.02, 1.0, log=True),
    "image_share": Categorical((0.0, 0.25, 0.5)),
    "lr": Float(2e-4, 2e-1, log=True),
    "batch_size": Categorical((4, 8, 16, 32)),
    "epochs": Int(10, 200, log=True),
    "warmup_epochs": Int(0, 2),
    **CROPS,
}
"""Numbers of prompts and tokens, the transport, and training."""


def clip_lora_space(facts: TaskFacts) -> DeclaredSpace:
    """Adapted matrices of either encoder, their rank, and their training."""
    encoders: Ranges = {"encoders": Categorical(("both", "image", "text"))}
    own = encoders if facts.tower == "vit" else {}  # otherwise the text encoder only
    return DeclaredSpace(facts, "clip-lora", "clip-lora", {**own, **_LORA})
