"""The methods that can be named on the command line."""

from __future__ import annotations

from trainables.methods.base import Method
from trainables.methods.clap import Clap
from trainables.methods.clip_adapter import ClipAdapter
from trainables.methods.clip_lora import ClipLora
from trainables.methods.cocoop import CoCoOp
from trainables.methods.coop import CoOp
from trainables.methods.cross_modal import CrossModal
from trainables.methods.enhanced_base import EnhancedBase
from trainables.methods.gda import Gda
from trainables.methods.linear_probe import LinearProbe
from trainables.methods.lp_plus_plus import LpPlusPlus
from trainables.methods.masking.rmt import MaskTuning
from trainables.methods.masking.rmt_both import MaskedTowers
from trainables.methods.masking.rmt_text import MaskedText
from trainables.methods.prograd import ProGrad
from trainables.methods.taskres import TaskRes
from trainables.methods.text_adapter import TextAdapter
from trainables.methods.tip_adapter import TipAdapter
from trainables.methods.tip_adapter_f import TipAdapterF
from trainables.methods.vpt import Vpt
from trainables.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    "zero-shot": ZeroShot,
    "linear-probe": LinearProbe,
    "clip-adapter": ClipAdapter,
    "tip-adapter": TipAdapter,
    "tip-adapter-f": TipAdapterF,
    "cross-modal": CrossModal,
    "lp-plus-plus": LpPlusPlus,
    "clap": Clap,
    "gda": Gda,
    "taskres": TaskRes,
    "text-adapter": TextAdapter,
    "enhanced-base": EnhancedBase,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "prograd": ProGrad,
    "rmt": MaskTuning,
    "rmt-text": MaskedText,
    "rmt-both": MaskedTowers,
    "clip-lora": ClipLora,
    "vpt": Vpt,
}
