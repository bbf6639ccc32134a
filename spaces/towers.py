"""What is tuned inside the towers: CLIP-LoRA (arXiv:2405.18541), VPT (arXiv:2203.12119)."""

from __future__ import annotations

from collections.abc import Mapping

from spaces.base import Setting
from spaces.declared import CROPS, Among, DeclaredSpace, Range, Reals, Whole

_LORA: Mapping[str, Range] = {
    "matrices": Among(("v", "q,v", "q,k,v", "q,k,v,o", "q,k,v,o,up,down")),
    "rank": Among((1, 2, 4, 8, 16)),
    "lora_alpha": Reals(0.25, 16.0, log=True),
    "dropout": Reals(0.0, 0.5),
    "lr": Reals(2e-5, 2e-3, log=True),
    "weight_decay": Reals(1e-4, 1e-1, log=True),
    "epochs": Whole(10, 400, log=True),
    **CROPS,
}
_VPT: Mapping[str, Range] = {
    "tokens": Whole(4, 50, log=True),
    "deep": Among((True, False)),
    "lr": Reals(2.5e-4, 2.5e-1, log=True),
    "batch_size": Among((4, 8, 16, 32)),
    "epochs": Whole(5, 200, log=True),
    "warmup_epochs": Whole(0, 2),
    **CROPS,
}


def clip_lora_space(setting: Setting) -> DeclaredSpace:
    """Which matrices of which encoders change, by what rank, how fast and how long."""
    encoders: Mapping[str, Range] = {"encoders": Among(("both", "image", "text"))}
    own = encoders if setting.tower == "vit" else {}  # else the text encoder's alone
    return DeclaredSpace(setting, "clip-lora", "clip-lora", {**own, **_LORA})


def vpt_space(setting: Setting) -> DeclaredSpace:
    """How many tokens, before which blocks, how fast and how long."""
    return DeclaredSpace(setting, "vpt", "vpt", _VPT)
