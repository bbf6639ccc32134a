"""Measures of a trained model that the papers report besides its accuracy.

Notation: n test images, K classes, x a residual [K, d].
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from search.papers.schema import Measure
from search.reporting.artifacts import Learned, numbers_in, stages_of
from trainables.trial import Episode

_MIB = 2**20
_GROUPS = {"attn": "attention", "mlp": "MLP", "conv1": "first convolution"}
"""Groups of layers by a part of their tensors' names. The first convolution of a ViT
embeds the patches; a ResNet's is at the start of its stem."""
_OTHER = "other convolutions"


def artifact_measures(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[Measure, float]:
    """Compute the measures that depend only on an artifact.

    Sparsity (per cent of all masked weights) and the magnitudes of a text residual without alpha
    are absent if nothing of that kind was learned.
    """
    stages = stages_of(tensors, metadata)
    found: dict[Measure, float] = {
        "size": sum(t.numel() * t.element_size() for own, _ in stages for t in own.values()) / _MIB,
        "parameters": sum(map(numbers_in, stages)) / 1e6,
    }
    for own in (_learned(*stage) for stage in stages):
        if masks := own.masks():
            dropped = sum(int((~mask).sum()) for mask in masks.values())
            found["sparsity"] = 100 * dropped / sum(mask.numel() for mask in masks.values())
        if residual := own.residual():
            size = residual[0].abs()
            found |= {
                "residual-mean": size.mean().item(),
                "residual-median": float(np.median(size.cpu().numpy())),
            }
    return found


def layer_measures(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, dict[Measure, float]]:
    """Compute per group of layers: `layer-change`, the mean over its tensors of the mean absolute
    change of the scores, and `layer-sparsity`, the share of its weights that are dropped (per
    cent). Empty without masks."""
    changes: dict[str, list[float]] = {}
    masks: dict[str, list[Tensor]] = {}
    for own in (_learned(*stage) for stage in stages_of(tensors, metadata)):
        for name, mask in (own.masks() or {}).items():
            masks.setdefault(_group(name), []).append(mask)
        for name, change in own.score_change().items():
            changes.setdefault(_group(name), []).append(change)
    found: dict[str, dict[Measure, float]] = {}
    for group, own_masks in masks.items():
        dropped = sum(int((~mask).sum()) for mask in own_masks)
        share = 100 * dropped / sum(mask.numel() for mask in own_masks)
        found[group] = {"layer-sparsity": share}
        if group in changes:
            found[group]["layer-change"] = statistics.fmean(changes[group])
    return found


def masks_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Return all masks of an artifact, True for kept weights, for `dropped_iou`; empty if it has
    none."""
    stages = (_learned(*stage) for stage in stages_of(tensors, metadata))
    return {name: mask for own in stages for name, mask in (own.masks() or {}).items()}


def against_zero_shot(
    truth: NDArray[np.integer],
    zero_shot: NDArray[np.integer],
    predictions: NDArray[np.integer],
) -> dict[Measure, float]:
    """Labels and predictions [n] -> gain in accuracy (points), and the numbers of images that
    became right and that became wrong."""
    before, after = np.equal(zero_shot, truth), np.equal(predictions, truth)
    return {
        "gain": 100 * float(after.mean() - before.mean()),
        "wrong-to-right": int((~before & after).sum()),
        "right-to-wrong": int((before & ~after).sum()),
    }


def transfer_difficulty(classes: int, accuracy: float) -> float | None:
    """(1 / K) / zero-shot accuracy, a share in [0, 1]; None if no image is classified correctly."""
    return 1 / classes / accuracy if accuracy > 0 else None


def _learned(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Learned:
    return Learned("", Episode("", 1, 1), tensors, metadata)


def _group(name: str) -> str:
    """Return the group of a tensor by its name in open_clip's towers:
    `transformer.resblocks.0.attn.in_proj_weight`."""
    if name.removeprefix("visual.").startswith("conv1."):
        return _GROUPS["conv1"]
    found = (group for part, group in _GROUPS.items() if part != "conv1" and part in name)
    return next(found, _OTHER)
