"""The methods that configurations can name."""

from __future__ import annotations

from collections.abc import Mapping

from trainables.core.plugins import Registry
from trainables.methods.base import Method
from trainables.methods.clap import Clap
from trainables.methods.clip_adapter import ClipAdapter
from trainables.methods.clip_lora import ClipLora
from trainables.methods.cocoop import CoCoOp
from trainables.methods.coop import CoOp
from trainables.methods.cross_modal import CrossModal
from trainables.methods.enhanced_base import EnhancedBase
from trainables.methods.fine_tuning import FineTuning
from trainables.methods.gda import Gda
from trainables.methods.kgcoop import KgCoOp
from trainables.methods.linear_adapter import LinearAdapter
from trainables.methods.linear_probe import LinearProbe
from trainables.methods.lp_plus_plus import LpPlusPlus
from trainables.methods.maple import Maple
from trainables.methods.masking.rmt import MaskedText, MaskedTowers, MaskTuning
from trainables.methods.plot import Plot
from trainables.methods.prograd import ProGrad
from trainables.methods.promptsrc import PromptSrc
from trainables.methods.taskres import TaskRes
from trainables.methods.text_adapter import TextAdapter
from trainables.methods.tip_adapter import TipAdapter, TipAdapterF
from trainables.methods.vpt import Vpt
from trainables.methods.zero_shot import ZeroShot

_OWN: dict[str, type[Method]] = {
    ZeroShot.name: ZeroShot,
    LinearProbe.name: LinearProbe,
    ClipAdapter.name: ClipAdapter,
    TipAdapter.name: TipAdapter,
    TipAdapterF.name: TipAdapterF,
    CrossModal.name: CrossModal,
    LpPlusPlus.name: LpPlusPlus,
    Clap.name: Clap,
    Gda.name: Gda,
    TaskRes.name: TaskRes,
    TextAdapter.name: TextAdapter,
    LinearAdapter.name: LinearAdapter,
    EnhancedBase.name: EnhancedBase,
    CoOp.name: CoOp,
    CoCoOp.name: CoCoOp,
    ProGrad.name: ProGrad,
    KgCoOp.name: KgCoOp,
    MaskTuning.name: MaskTuning,
    MaskedText.name: MaskedText,
    MaskedTowers.name: MaskedTowers,
    FineTuning.name: FineTuning,
    ClipLora.name: ClipLora,
    Vpt.name: Vpt,
    Maple.name: Maple,
    PromptSrc.name: PromptSrc,
    Plot.name: Plot,
}

METHODS: Mapping[str, type[Method]] = Registry("METHODS", _OWN)
"""Registry name -> method, including those of plugins."""
