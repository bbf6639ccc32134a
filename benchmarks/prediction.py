"""Classifying image files, compared with decoding them and the bare forward passes.

    python -m benchmarks.prediction                 1,000 images on the embedded model
    python -m benchmarks.prediction --images 50     fewer

`search.predict` opens files, decodes, resizes, classifies and writes the CSV. The bare side decodes
and resizes all images with as many threads, and then runs the same network on the preprocessed
images. Both sides run in turns of alternating order; the figure is the median ratio of durations.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from search.exporting.classifier import BATCH, Classifier, Photos
from search.predict import write_predictions
from search.terminal.console import open_console
from trainables.data.digits import read_digits
from trainables.images.decode import decoded
from trainables.load_backbone import load_backbone

CLASSES = 10
SIDE = 256  # of the JPEG files, in pixels


def write_images(folder: Path, count: int) -> list[str]:
    """Write digits as JPEG files of `SIDE` pixels; return their paths."""
    pixels = (read_digits()[0] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    files = []
    for row in range(count):
        image = Image.fromarray(pixels[row % len(pixels)]).resize((SIDE, SIDE)).convert("RGB")
        files.append(str(folder / f"{row:05}.jpg"))
        image.save(files[-1])
    return files


def open_model() -> Classifier:
    """The embedded model with a random linear classifier."""
    backbone = load_backbone("tiny")
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, backbone.feature_dim, generator=rng)

    def network(images: Tensor) -> Tensor:
        return functional.normalize(backbone.encode_image(images), dim=-1) @ weight.T

    return Classifier(tuple("abcdefghij"), backbone.preprocess, network, "cpu")


@torch.no_grad()
def bare(model: Classifier, files: list[str]) -> None:
    """Decode and resize everything, then classify everything."""
    threads = max(2, torch.get_num_threads())
    views = [model.preprocess.resize(part) for part in decoded(Photos(files), BATCH, threads)]
    for view in views:
        model.network(model.preprocess.normalise(view)).softmax(-1)


def measure(images: int, turns: int) -> tuple[float, float, float]:
    """Return the median seconds of `search.predict` and of the bare side, and the median ratio."""
    model = open_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_images(folder, images)
        console = open_console()
        console.quiet = True
        sides = {
            "predict": lambda: write_predictions(model, files, 3, str(folder / "p.csv"), console),
            "bare": lambda: bare(model, files),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(turns + 1):
            for side in sorted(sides, reverse=turn % 2 == 0):
                start = time.perf_counter()
                sides[side]()
                if turn:  # the first turn does not count
                    seconds[side].append(time.perf_counter() - start)
    ratios = [p / b for p, b in zip(seconds["predict"], seconds["bare"], strict=True)]
    middle = statistics.median
    return middle(seconds["predict"]), middle(seconds["bare"]), middle(ratios)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    predict, alone, ratio = measure(options.images, options.turns)
    print(
        f"{options.images} images: search.predict {predict:.2f} s, decoding and bare forward "
        f"passes {alone:.2f} s, ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
