"""The methods that can be named on the command line."""

from __future__ import annotations

from trainables.methods.base import Method
from trainables.methods.clip_lora import ClipLora
from trainables.methods.cocoop import CoCoOp
from trainables.methods.coop import CoOp
from trainables.methods.prograd import ProGrad
from trainables.methods.rmt import MaskTuning
from trainables.methods.taskres import TaskRes
from trainables.methods.vpt import Vpt
from trainables.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    "zero-shot": ZeroShot,
    "taskres": TaskRes,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "prograd": ProGrad,
    "rmt": MaskTuning,
    "clip-lora": ClipLora,
    "vpt": Vpt,
}
