"""What the conformance suite tries on every method; one without an entry fails it."""

from trainables.methods.base import MethodConfig
from trainables.methods.clip_lora import ClipLoraConfig
from trainables.methods.cocoop import CoCoOpConfig
from trainables.methods.context import ContextConfig
from trainables.methods.prograd import ProGradConfig
from trainables.methods.rmt import MaskTuningConfig
from trainables.methods.taskres import TaskResConfig
from trainables.methods.vpt import VptConfig
from trainables.methods.zero_shot import ZeroShotConfig
from trainables.optim import OptimConfig

CASES: dict[str, list[MethodConfig]] = {
    "zero-shot": [ZeroShotConfig()],
    "taskres": [
        TaskResConfig(),
        TaskResConfig(learn_alpha=True),
        TaskResConfig(alpha=2.0),
        TaskResConfig(residual="image", alpha=2.0),
        TaskResConfig(residual="both", learn_alpha=True),
    ],
    "rmt": [
        MaskTuningConfig(masked="all", leak=0.3),
        MaskTuningConfig(masked="mhsa", leak=0.0),
        MaskTuningConfig(
            masked="all", patch_embedding=True, norm_weight=1e-4, purity_eps=1e-8, leak=1.0
        ),
        MaskTuningConfig(masked="dynamic"),
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
    "clip-lora": [
        ClipLoraConfig(),
        ClipLoraConfig(matrices="q,k,v,o,up,down", scaling="root", dropout=0.0),
        ClipLoraConfig(encoders="text", prompts="clean"),
        ClipLoraConfig(encoders="image", matrices="v,down", rank=4),
    ],
    "vpt": [VptConfig(), VptConfig(tokens=3, deep=False)],
}
"""Configurations that fit both backbones."""

_CONTEXT: dict[str, object] = {
    "prompts": "reference",  # whose class names keep their underscores
    "context_tokens": 8,
    "init_words": "a photo of a",
    "class_specific": True,
    "class_position": "middle",
}

OTHER: dict[str, dict[str, object]] = {
    "zero-shot": {"prompts": "reference"},
    "taskres": {
        "prompts": "clean",
        "residual": "image",
        "alpha": 1.0,
        "learn_alpha": True,
        "normalise_base": True,
    },
    "rmt": {
        "prompts": "single",
        "masked": "all",
        "patch_embedding": True,
        "init": 2e-2,
        "threshold": 9e-3,
        "leak": 0.0,
        "norm_weight": 1.0,
        "purity_eps": 10.0,
    },
    "coop": _CONTEXT,
    "cocoop": {"prompts": "reference", "context_tokens": 6, "init_words": "", "reduction": 4},
    "prograd": {**_CONTEXT, "projection": 0.3, "temperature": 3.0},
    "clip-lora": {
        "prompts": "photo",
        "encoders": "text",
        "matrices": "v",
        "rank": 4,
        "lora_alpha": 4.0,
        "scaling": "root",
        "dropout": 0.0,
    },
    "vpt": {"prompts": "photo", "tokens": 3, "deep": False},
}
"""For every field a value that must make a difference."""

ADAM = OptimConfig(lr=2e-3, epochs=4, batch_size=8)
OPTIM: dict[str, OptimConfig] = {}
"""Of the methods that do not learn by Adam at that rate."""
ONLY: dict[str, str] = {"clip-lora": "vit", "vpt": "vit"}
"""Methods that fit one of the two backbones."""
