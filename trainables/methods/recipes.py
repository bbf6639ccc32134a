"""Training recipes that several methods share: those of CoOp and TaskRes.

Both released codes build on the framework Dassl, whose defaults reach training although neither
paper mentions them: a weight decay of 5e-4 and random crops of at least 8 % of the area, with
flips. They are part of the preset `reference` only.
"""

from __future__ import annotations

from dataclasses import replace

from trainables.core.optim import OptimConfig
from trainables.methods.base import Preset, TaskFacts

DASSL_WEIGHT_DECAY = 5e-4
DASSL_CROP_SCALE = 0.08
CLEAN_STEPS = 2000
"""Minimum training steps of the `clean` preset of methods with tokens in the image tower: what
VPT's published epochs and batches give at 16 shots on a data set of a hundred classes."""


def dassl_weight_decay(name: Preset) -> float:
    """Dassl's default for `reference`, else none."""
    return DASSL_WEIGHT_DECAY if name == "reference" else 0.0


def dassl_crop_scale(name: Preset) -> float:
    """Dassl's default for `reference`, else 1, which is no augmentation."""
    return DASSL_CROP_SCALE if name == "reference" else 1.0


def dassl_sgd(name: Preset, lr: float, epochs: int, batch_size: int) -> OptimConfig:
    """SGD with one epoch of warm-up: the optimiser of CoOp and of methods built on its code."""
    return OptimConfig(
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        weight_decay=dassl_weight_decay(name),
        warmup_epochs=1,
        optimiser="sgd",
    )


def token_optim(
    name: Preset, facts: TaskFacts, lr: float, epochs: int, batch_size: int = 4
) -> OptimConfig:
    """`dassl_sgd` in batches of four, as in the released configurations of MaPLe, of its VPT and of
    PromptSRC; `clean` trains for at least `CLEAN_STEPS` steps."""
    optim = dassl_sgd(name, lr, epochs, batch_size)
    if name != "clean":
        return optim
    least = -(-CLEAN_STEPS // optim.steps_per_epoch(facts.images))
    return replace(optim, epochs=max(epochs, least))


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
    return dassl_sgd(name, 2e-3, epochs, batch_size=32)


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
