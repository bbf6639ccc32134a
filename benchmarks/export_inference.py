"""Inference time of a merged export compared with the plain CLIP, on one CPU.

    python -m benchmarks.export_inference                               the embedded model
    python -m benchmarks.export_inference --shape ViT-B-32 --batch 16   random weights

A third of the attention weights is masked at random. The masked model is exported in the format
`merged` and loaded from the export; the plain model is also written and reloaded. Both then encode
and classify the same images in turns of alternating order. The figure is the median over turns of
the merged model's duration / the plain model's duration in the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.mask_step import Shape, open_shape
from trainables.backbones.base import Backbone
from trainables.backbones.layout import write_folder
from trainables.backbones.open_clip import open_clip
from trainables.load_backbone import load_backbone
from trainables.methods.base import BuildContext, ClassTexts, Schedule
from trainables.methods.masking.rmt import MaskTuning, MaskTuningConfig

CLASSES = 100


@dataclass(frozen=True)
class Figures:
    """What one run measured."""

    plain: float
    """Median duration of a batch through the plain model, in seconds."""
    merged: float
    """Median duration of a batch through the merged model, in seconds."""
    ratio: float
    """Median over turns of merged / plain."""
    zeros: float
    """Share of the masked weights that are 0."""


def measure(shape: Shape = "tiny", batch: int = 32, repeats: int = 60) -> Figures:
    """Write, open and time both models."""
    plain = open_shape(shape)
    if not plain.architecture:
        architecture = open_clip.get_model_config(shape)
        plain = replace(plain, architecture=architecture)
    rng = torch.Generator().manual_seed(0)
    classes = torch.randn(CLASSES, plain.feature_dim, generator=rng)
    masked, zeros = _masked(plain, classes, rng)
    plain, merged = _written(plain), _written(masked)
    side = plain.preprocess.image_size
    images = torch.randn(batch, 3, side, side, generator=rng)
    weight = plain.logit_scale * functional.normalize(classes, dim=-1)
    if torch.equal(_logits(plain, weight, images), _logits(merged, weight, images)):
        raise AssertionError("the merged model is the plain one: there is nothing to compare")
    models = {"plain": plain, "merged": merged}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name in sorted(models, reverse=turn % 2 == 0):
            begin = time.perf_counter()
            _logits(models[name], weight, images)
            if turn:  # the first turn does not count
                seconds[name].append(time.perf_counter() - begin)
    ratios = [m / p for m, p in zip(seconds["merged"], seconds["plain"], strict=True)]
    return Figures(
        statistics.median(seconds["plain"]),
        statistics.median(seconds["merged"]),
        statistics.median(ratios),
        zeros,
    )


def _written(backbone: Backbone) -> Backbone:
    """Write and reload a backbone, so that both models have the same memory layout."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(backbone, Path(folder))
        return load_backbone(f"local-dir:{folder}")


def _masked(backbone: Backbone, classes: Tensor, rng: torch.Generator) -> tuple[Backbone, float]:
    """Return masks as after a training that has flipped a third of the bits."""
    context = BuildContext(backbone, ClassTexts(classes), Schedule((1e-3,)))
    method = MaskTuning.build(MaskTuningConfig(), context)
    masked = kept = 0
    with torch.no_grad():
        for score in method.trainable().values():
            score[torch.rand(score.shape, generator=rng) < 1 / 3] = 0.0
    for mask in method.masks().values():
        masked, kept = masked + mask.numel(), kept + int(mask.sum())
    return method.merged_backbone(), 1 - kept / masked


def _logits(backbone: Backbone, weight: Tensor, images: Tensor) -> Tensor:
    return functional.normalize(backbone.encode_image(images), dim=-1) @ weight.T


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--shape", choices=["tiny", "ViT-B-16", "ViT-B-32"], default="tiny")
    parser.add_argument("--batch", type=int, default=32, help="images per turn")
    parser.add_argument("--repeats", type=int, default=60, help="turns")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.shape, options.batch, options.repeats)
    print(
        f"{options.shape}, batch {options.batch}, {options.threads} thread(s), {options.repeats} "
        f"turns, {found.zeros:.0%} of the masked weights are 0\n"
        f"plain {options.batch / found.plain:.1f} images/s, merged "
        f"{options.batch / found.merged:.1f} images/s; merged takes {found.ratio:.4f} of the time"
    )


if __name__ == "__main__":
    main()
