"""Cases of the conformance suite for every method; a method without an entry fails."""

from dataclasses import replace

from trainables.core.optim import OptimConfig
from trainables.core.plugins import plugins
from trainables.fields import Field, Value, fields_of
from trainables.methods.base import MethodConfig, TaskFacts
from trainables.methods.clap import ClapConfig
from trainables.methods.clip_adapter import ClipAdapterConfig
from trainables.methods.clip_lora import ClipLoraConfig
from trainables.methods.cocoop import CoCoOpConfig
from trainables.methods.context import ContextConfig
from trainables.methods.cross_modal import CrossModalConfig
from trainables.methods.enhanced_base import EnhancedBaseConfig
from trainables.methods.fine_tuning import FineTuningConfig
from trainables.methods.gda import GdaConfig
from trainables.methods.kgcoop import KgCoOpConfig
from trainables.methods.linear_adapter import LinearAdapterConfig
from trainables.methods.linear_probe import LinearProbeConfig
from trainables.methods.lp_plus_plus import LpPlusPlusConfig
from trainables.methods.maple import MapleConfig
from trainables.methods.masking.mask_method import MaskConfig
from trainables.methods.masking.rmt import MaskedTowersConfig, MaskTuningConfig
from trainables.methods.plot import PlotConfig
from trainables.methods.prograd import ProGradConfig
from trainables.methods.promptsrc import PromptSrcConfig
from trainables.methods.taskres import TaskResConfig
from trainables.methods.text_adapter import TextAdapterConfig
from trainables.methods.tip_adapter import TipAdapterConfig
from trainables.methods.vpt import VptConfig
from trainables.methods.zero_shot import ZeroShotConfig

CASES: dict[str, list[MethodConfig]] = {
    "zero-shot": [ZeroShotConfig()],
    "linear-probe": [
        LinearProbeConfig(),
        LinearProbeConfig(inverse_penalty=0.1, iterations=20),
    ],
    "clip-adapter": [ClipAdapterConfig(), ClipAdapterConfig(ratio=1.0, reduction=8)],
    "tip-adapter": [TipAdapterConfig(), TipAdapterConfig(alpha=3.0, beta=1.0)],
    "tip-adapter-f": [TipAdapterConfig(), TipAdapterConfig(alpha=3.0, beta=1.0)],
    "cross-modal": [CrossModalConfig(), CrossModalConfig(text_share=0.0)],
    "lp-plus-plus": [
        LpPlusPlusConfig(),
        LpPlusPlusConfig(start="sums", inertia=0.9, offset=True, summed_slopes=True),
    ],
    "clap": [
        ClapConfig(),
        ClapConfig(penalty=0.0, normalise_base=True),
        ClapConfig(per_class=False),
    ],
    "gda": [GdaConfig(), GdaConfig(alpha=10.0, shrinkage=0.1)],
    "taskres": [
        TaskResConfig(),
        TaskResConfig(learn_alpha=True),
        TaskResConfig(alpha=2.0),
        TaskResConfig(residual="image", alpha=2.0),
        TaskResConfig(residual="both", learn_alpha=True),
    ],
    "text-adapter": [
        TextAdapterConfig(),
        TextAdapterConfig(keep_base=False, reduction=2),
        TextAdapterConfig(alpha=2.0, prompts="clean"),
    ],
    "linear-adapter": [
        LinearAdapterConfig(),
        LinearAdapterConfig(bias=False, prompts="clean"),
        LinearAdapterConfig(adapted="image", alpha=2.0),
    ],
    "enhanced-base": [
        EnhancedBaseConfig(),
        EnhancedBaseConfig(prompts="clean"),  # a norm between projection and mean
    ],
    "rmt": [
        MaskTuningConfig(masked="all", leak=0.3),
        MaskTuningConfig(masked="mhsa", leak=0.0),
        MaskTuningConfig(
            masked="all", patch_embedding=True, norm_weight=1e-4, purity_eps=1e-8, leak=1.0
        ),
        MaskTuningConfig(masked="dynamic"),
        MaskTuningConfig(masked="all", rule="none", granularity="filter"),
        MaskTuningConfig(rule="sum", granularity="channel", temperature=2.0),
        MaskTuningConfig(rule="agree", teacher_share=0.5),
        MaskTuningConfig(rule="sign", leak=0.5, leak_kl=0.2),
        MaskTuningConfig(rule="prograd", precision="bfloat16"),
    ],
    "rmt-text": [
        MaskConfig(leak=0.3),
        MaskConfig(masked="dynamic", granularity="filter", prompts="clean"),
        MaskConfig(masked="mlp", rule="sum", precision="bfloat16"),
    ],
    "rmt-both": [
        MaskedTowersConfig(leak=0.3),
        MaskedTowersConfig(masked="all", masked_text="all", patch_embedding=True, rule="none"),
        MaskedTowersConfig(masked="dynamic", granularity="channel"),
    ],
    "coop": [
        ContextConfig(),
        ContextConfig(context_tokens=4, init_words="a photo of a", prompts="photo"),
        ContextConfig(context_tokens=3, class_specific=True, class_position="middle"),
    ],
    "cocoop": [CoCoOpConfig(), CoCoOpConfig(context_tokens=5, reduction=4)],
    "prograd": [
        ProGradConfig(),
        ProGradConfig(context_tokens=4, class_specific=True, class_position="front"),
    ],
    "kgcoop": [
        KgCoOpConfig(),
        KgCoOpConfig(context_tokens=4, init_words="a photo of a", prompts="single"),
        KgCoOpConfig(context_tokens=4, class_specific=True, knowledge_weight=0.0),
    ],
    "fine-tuning": [FineTuningConfig(), FineTuningConfig(prompts="clean")],
    "clip-lora": [
        ClipLoraConfig(),
        ClipLoraConfig(matrices="q,k,v,o,up,down", scaling="root", dropout=0.0),
        ClipLoraConfig(encoders="text", prompts="clean"),
        ClipLoraConfig(encoders="image", matrices="v,down", rank=4),
    ],
    "vpt": [VptConfig(), VptConfig(tokens=3, deep=False)],
    "promptsrc": [
        PromptSrcConfig(),
        PromptSrcConfig(depth=1, image_tokens=2, average_width=1.0, prompts="diverse"),
        PromptSrcConfig(text_weight=0.0, image_weight=0.0, logits_weight=0.0, init_words=""),
    ],
    "plot": [
        PlotConfig(image_share=0.0),
        PlotConfig(
            text_prompts=2, image_prompts=1, context_tokens=3, init_words="", image_share=0.0
        ),
    ],
    "maple": [MapleConfig(), MapleConfig(context_tokens=4, depth=1, init_words="")],
}
"""Configurations that fit both backbones."""

_MASKS: dict[str, object] = {
    "granularity": "filter",
    "rule": "none",
    "leak_kl": 0.3,
    "temperature": 4.0,
    "teacher_share": 0.2,
    "precision": "bfloat16",
}

_CONTEXT: dict[str, object] = {
    "prompts": "reference",  # keeps underscores in class names
    "context_tokens": 8,
    "init_words": "a photo of a",
    "class_specific": True,
    "class_position": "middle",
}

OTHER: dict[str, dict[str, object]] = {
    "zero-shot": {"prompts": "reference"},
    "linear-probe": {"prompts": "reference", "inverse_penalty": 1.0, "iterations": 2},
    "clip-adapter": {"prompts": "reference", "ratio": 0.4, "reduction": 2},
    "tip-adapter": {"prompts": "reference", "alpha": 2.0, "beta": 1.0},
    "tip-adapter-f": {"prompts": "reference", "alpha": 2.0, "beta": 1.0},
    "cross-modal": {"prompts": "reference", "text_share": 0.2},
    "lp-plus-plus": {
        "prompts": "reference",
        "iterations": 20,
        "alpha_every": 5,
        "step": 0.5,
        "start_alpha": 100.0,
        "start": "sums",
        "inertia": 0.9,
        "offset": True,
        "summed_slopes": True,
    },
    "clap": {"prompts": "reference", "penalty": 2.0, "per_class": False, "normalise_base": True},
    "gda": {"prompts": "reference", "alpha": 2.0, "shrinkage": 0.5},
    "taskres": {
        "prompts": "clean",
        "residual": "image",
        "alpha": 1.0,
        "learn_alpha": True,
        "normalise_base": True,
    },
    "text-adapter": {"prompts": "clean", "keep_base": False, "alpha": 2.0, "reduction": 2},
    "linear-adapter": {"prompts": "clean", "adapted": "image", "bias": False, "alpha": 2.0},
    "enhanced-base": {"prompts": "clean"},
    "rmt": {
        "prompts": "single",
        "masked": "all",
        "patch_embedding": True,
        "init": 2e-2,
        "threshold": 9e-3,
        "leak": 0.0,
        "norm_weight": 1.0,
        "purity_eps": 10.0,
        **_MASKS,
    },
    "rmt-text": {
        "prompts": "single",
        "masked": "all",
        "init": 2e-2,
        "threshold": 9e-3,
        "leak": 0.0,
        "norm_weight": 1.0,
        "purity_eps": 10.0,
        **_MASKS,
    },
    "rmt-both": {
        "prompts": "single",
        "masked": "all",
        "masked_text": "all",
        "patch_embedding": True,
        "init": 2e-2,
        "threshold": 9e-3,
        "leak": 0.0,
        "norm_weight": 1.0,
        "purity_eps": 10.0,
        **_MASKS,
    },
    "coop": _CONTEXT,
    "cocoop": {"prompts": "reference", "context_tokens": 6, "init_words": "", "reduction": 4},
    "prograd": {**_CONTEXT, "projection": 0.3, "temperature": 3.0},
    "kgcoop": {**_CONTEXT, "knowledge_weight": 1.0},
    "fine-tuning": {"prompts": "reference"},
    "clip-lora": {
        "prompts": "photo",
        "encoders": "text",
        "matrices": "v",
        "rank": 4,
        "lora_alpha": 4.0,
        "scaling": "root",
        "dropout": 0.0,
    },
    "promptsrc": {
        "prompts": "reference",
        "context_tokens": 3,
        "image_tokens": 2,
        "depth": 1,
        "init_words": "",
        "text_weight": 1.0,
        "image_weight": 1.0,
        "logits_weight": 100.0,
        "average_center": 0.3,
        "average_width": 1.0,
    },
    "plot": {
        "prompts": "reference",
        "text_prompts": 2,
        "image_prompts": 2,
        "context_tokens": 3,
        "image_tokens": 3,
        "init_words": "",
        "entropy": 0.5,
        "image_share": 0.0,
    },
    "maple": {"prompts": "reference", "context_tokens": 4, "depth": 1, "init_words": ""},
    "vpt": {"prompts": "photo", "tokens": 3, "deep": False},
}
"""For every field, a value that must make a difference."""

ADAM = OptimConfig(lr=2e-3, epochs=4, batch_size=8)
OPTIM: dict[str, OptimConfig] = {
    "fine-tuning": OptimConfig(lr=1e-4, epochs=4, batch_size=8),
    "clap": OptimConfig(lr=0.1, epochs=4, batch_size=8, optimiser="sgd"),
}
"""Learning rates of methods that do not use Adam with the default rate."""
ONLY: dict[str, str] = {
    "clip-lora": "vit",
    "vpt": "vit",
    "maple": "vit",
    "promptsrc": "vit",
    "plot": "vit",
}
"""Methods that support only one of the two backbones."""
WITH: dict[tuple[str, str], dict[str, object]] = {
    (name, "leak_kl"): {"rule": "sign"} for name in ("rmt", "rmt-text", "rmt-both")
}
"""Method and field -> other fields that must be set for the field to have an effect."""


def another(field: Field, value: Value) -> Value:
    """A value of a field that should make a difference."""
    if field.choices:
        return next(choice for choice in field.choices if choice != value)
    if isinstance(value, str):
        return f"{value} other"
    return field.convert(value * 10 or 1)


for plugin in plugins():
    for name, method in getattr(plugin, "METHODS", {}).items():
        config = method.Config()
        known = fields_of(name)
        values = {key: another(known[key], value) for key, value in vars(config).items()}
        CASES[name] = getattr(plugin, "CASES", {}).get(name, [config])
        OTHER[name] = values | getattr(plugin, "OTHER", {}).get(name, {})
        recipe = method.preset("paper", TaskFacts("digits", 4, 16))
        OPTIM[name] = replace(recipe.optim, epochs=4, batch_size=8, warmup_epochs=0)
    OPTIM |= getattr(plugin, "OPTIM", {})
