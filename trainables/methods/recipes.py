"""Training recipes that several methods share: those of CoOp and TaskRes.

Both released codes build on the framework Dassl, whose defaults reach training although neither
paper mentions them: a weight decay of 5e-4 and random crops of at least 8 % of the area, with
flips. They are part of the preset `reference` only.
"""

from __future__ import annotations

from trainables.core.optim import OptimConfig
from trainables.methods.base import Preset, TaskFacts

DASSL_WEIGHT_DECAY = 5e-4
DASSL_CROP_SCALE = 0.08


def dassl_weight_decay(name: Preset) -> float:
    """Dassl's default for `reference`, else none."""
    return DASSL_WEIGHT_DECAY if name == "reference" else 0.0


def dassl_crop_scale(name: Preset) -> float:
    """Dassl's default for `reference`, else 1, which is no augmentation."""
    return DASSL_CROP_SCALE if name == "reference" else 1.0


def coop_optim(name: Preset, facts: TaskFacts) -> OptimConfig:
    """CoOp's few-shot training (Zhou et al. 2022, section 4.1), which ProGrad and CLIP-Adapter's
    released code follow.

    SGD at 2e-3 with one epoch of warm-up; 50 epochs at 1 shot and on ImageNet, 100 at 2 and 4
    shots, 200 above. Batch size 32 and momentum 0.9 are only in the code. The base-to-new and
    cross-dataset experiments with CoOp (CoCoOp's released configurations) train 50 epochs on
    ImageNet and 200 on the other data sets, as this does at 16 shots.
    """
    epochs = 100 if facts.shots <= 4 else 200
    if facts.shots == 1 or facts.dataset == "imagenet":
        epochs = 50
    return OptimConfig(
        lr=2e-3,
        epochs=epochs,
        batch_size=32,
        weight_decay=dassl_weight_decay(name),
        warmup_epochs=1,
        optimiser="sgd",
    )


def taskres_optim(name: Preset, facts: TaskFacts) -> OptimConfig:
    """TaskRes's training (Yu et al. 2023, section 4.1), which its ablations follow.

    Adam at 2e-3 (ImageNet 2e-4), batch size 256, 100 epochs up to 4 shots and 200 above, with one
    epoch of warm-up.
    """
    return OptimConfig(
        lr=2e-4 if facts.dataset == "imagenet" else 2e-3,
        epochs=100 if facts.shots <= 4 else 200,
        batch_size=256,
        weight_decay=dassl_weight_decay(name),
        warmup_epochs=1,
    )
