"""What is tuned inside the towers: CLIP-LoRA (arXiv:2405.18541), VPT (arXiv:2203.12119)."""

from __future__ import annotations

from collections.abc import Mapping

from spaces.base import TaskFacts
from spaces.declared import CROPS, Categorical, DeclaredSpace, Float, Int, Range

_LORA: Mapping[str, Range] = {
    "matrices": Categorical(("v", "q,v", "q,k,v", "q,k,v,o", "q,k,v,o,up,down")),
    "rank": Categorical((1, 2, 4, 8, 16)),
    "lora_alpha": Float(0.25, 16.0, log=True),
    "dropout": Float(0.0, 0.5),
    "lr": Float(2e-5, 2e-3, log=True),
    "weight_decay": Float(1e-4, 1e-1, log=True),
    "epochs": Int(10, 400, log=True),
    **CROPS,
}
_VPT: Mapping[str, Range] = {
    "tokens": Int(4, 50, log=True),
    "deep": Categorical((True, False)),
    "lr": Float(2.5e-4, 2.5e-1, log=True),
    "batch_size": Categorical((4, 8, 16, 32)),
    "epochs": Int(5, 200, log=True),
    "warmup_epochs": Int(0, 2),
    **CROPS,
}


def clip_lora_space(setting: TaskFacts) -> DeclaredSpace:
    """Which matrices of which encoders change, by what rank, how fast and how long."""
    encoders: Mapping[str, Range] = {"encoders": Categorical(("both", "image", "text"))}
    own = encoders if setting.tower == "vit" else {}  # else the text encoder's alone
    return DeclaredSpace(setting, "clip-lora", "clip-lora", {**own, **_LORA})


def vpt_space(setting: TaskFacts) -> DeclaredSpace:
    """How many tokens, before which blocks, how fast and how long."""
    return DeclaredSpace(setting, "vpt", "vpt", _VPT)
