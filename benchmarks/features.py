"""Throughput of features through the store, their reuse, and training on them.

    python -m benchmarks.features                   everything, a few minutes
    python -m benchmarks.features --part training   `extraction`, `second-use` or `training` alone

Extraction: JPEG files of 500 x 375 pixels are decoded, resized, encoded and stored, alternating
with forward passes of the same model on the same preprocessed images in batches of the same size.
The model is a ViT-B/32 with random weights. Figures are medians over turns, and ratios compare
durations in the same turn.

Second use: the time from creating an encoded task, with a loaded backbone, stored features and
image files on disk, to the first training batch. Opening the data set (listing its files) and
drawing are timed separately, because they do not depend on the store.

Training: TaskRes with the real trainer on features of 512 dimensions, validated in every epoch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.mask_step import open_shape
from trainables.backbones.base import Backbone
from trainables.core.optim import OptimConfig
from trainables.core.store import Store
from trainables.data.base import FeatureRows, Split
from trainables.data.image_files import ImageFiles
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.load_backbone import load_backbone
from trainables.methods.base import ClassTexts
from trainables.methods.taskres import TaskResConfig
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig
from trainables.view import ENCODE_BATCH, View

PHOTOGRAPH = (375, 500)
DIMENSION = 512
SIZES = {"Pets": (37, 16, 4), "ImageNet": (1000, 16, 4)}
"""Classes, training images per class, validation images per class."""
CONFIG = TrialConfig("taskres", "paper", TaskResConfig(), OptimConfig(2e-3, 100, 256))


@dataclass(frozen=True)
class Extraction:
    """Result of one run of `extraction`."""

    images: int
    """Images per turn."""
    bare: float
    """Seconds of the model's forward passes, median."""
    stored: float
    """Seconds until features are in the store, median."""
    ratio: float
    """Median over turns of the store's throughput / the bare model's."""
    work: float
    """The same ratio for images per second of processor time, which is nearly independent of other
    load. With more than one thread, it includes the time that threads spin while they wait."""


def extraction(backbone: Backbone, images: int, turns: int, folder: Path) -> Extraction:
    """Measure extraction, see the module's docstring."""
    files = photographs(folder, images, PHOTOGRAPH)
    split = Split(files, torch.zeros(images, dtype=torch.int64), "photographs")
    ready = View(split, False, backbone, Store(folder), keep=False)
    inputs = [backbone.preprocess.normalise(batch) for batch in ready.batches(ENCODE_BATCH)]
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "stored": []}
    for turn in range(turns + 1):  # the first one does not count
        store = Store(folder / f"store-{turn}")
        view = View(split, False, backbone, store, keep=False)
        work: dict[str, Callable[[], object]] = {
            "bare": lambda: [backbone.encode_image(batch) for batch in inputs],
            "stored": view.features,
        }
        for name in sorted(work, reverse=turn % 2 == 1):
            begin = time.perf_counter(), time.process_time()
            work[name]()
            if turn:
                spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
                times[name].append(spent)
    bare, stored = (statistics.median(wall for wall, _ in times[name]) for name in times)
    turnwise = list(zip(times["bare"], times["stored"], strict=True))
    ratio, effort = (statistics.median(b[i] / s[i] for b, s in turnwise) for i in (0, 1))
    return Extraction(images, bare, stored, ratio, effort)


def photographs(folder: Path, count: int, shape: tuple[int, int]) -> ImageFiles:
    """Write JPEG files of smooth noise, which compresses like photographs."""
    rng = np.random.default_rng(0)
    names = tuple(f"{row:05d}.jpg" for row in range(count))
    height, width = shape
    for name in names:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        smooth.save(folder / name, quality=90)
    return ImageFiles(folder, names)


@dataclass(frozen=True)
class SecondUse:
    """Result of one run of `second_use`, in seconds."""

    rows: int
    """Training images."""
    draw: float
    """Time to open the data set and draw, median."""
    first_batch: float
    """Time from then to the first batch of 256 features on the device, median."""


def second_use(classes: int, shots: int, turns: int, folder: Path) -> SecondUse:
    """Measure second use with files of 8 x 8 pixels and the embedded backbone, see above."""
    for split, count in (("train", shots), ("val", min(shots, 4)), ("test", 1)):
        for label in range(classes):
            home = folder / "data" / split / f"class {label:04d}"
            home.mkdir(parents=True)
            photographs(home, count, (8, 8))
    episode = Episode(f"folder:{folder / 'data'}", shots, 1)
    backbone, store = load_backbone("tiny"), Store(folder / "store")
    times: list[tuple[float, float]] = []
    for turn in range(turns + 1):  # the first one fills the store
        bench = EncodedTask("tiny", "cpu", DataSource())
        bench._store, bench.__dict__["backbone"] = store, backbone
        begin = time.perf_counter()
        train, _ = bench.views(episode)
        drawn = time.perf_counter()
        index = torch.randperm(len(train))[:256]
        batch = train.features()[index]
        if turn:
            times.append((drawn - begin, time.perf_counter() - drawn))
        assert batch.isfinite().all()
    draw, first = (statistics.median(column) for column in zip(*times, strict=True))
    return SecondUse(classes * shots, draw, first)


class Synthetic(EncodedTask):
    """An encoded task whose features are noise around class centres."""

    def __init__(self, classes: int, shots: int, val_shots: int) -> None:
        super().__init__("tiny", "cpu", DataSource())
        rng = torch.Generator().manual_seed(0)
        self._texts = torch.randn(classes, DIMENSION, generator=rng)
        self._pair = tuple(self._split(count, rng) for count in (shots, val_shots))

    def _split(self, shots: int, rng: torch.Generator) -> View:
        labels = torch.arange(len(self._texts)).repeat(shots)
        noise = torch.randn(len(labels), DIMENSION, generator=rng)
        rows = FeatureRows(self._texts[labels] + 3 * noise, "noise")
        return self.view(Split(rows, labels, "noise"), flip=False)

    def views(self, episode: Episode) -> tuple[View, View]:
        """Return the same views for every episode."""
        train, val = self._pair
        return train, val

    def classes(self, *where: object) -> ClassTexts:
        """Class features without texts."""
        return ClassTexts(self._texts)

    def class_features(self, *where: object) -> Tensor:
        """Class features [c, d]."""
        return self._texts


def training(classes: int, shots: int, val_shots: int, epochs: int) -> tuple[float, float]:
    """Wall and processor seconds of `epochs` epochs, after one warm-up epoch."""
    trainer = Trainer(CONFIG, Synthetic(classes, shots, val_shots), Episode("noise", shots, 1))
    trainer.run_epoch()
    begin = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        trainer.run_epoch()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--part", choices=["extraction", "second-use", "training"])
    parser.add_argument("--images", type=int, default=128, help="images of a turn of extraction")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100, help="of a training")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, load average {os.getloadavg()[0]:.1f} before")
    if options.part in (None, "extraction"):
        with tempfile.TemporaryDirectory() as folder:
            found = extraction(open_shape("ViT-B-32"), options.images, options.turns, Path(folder))
        print(
            f"extraction: bare {found.images / found.bare:.1f} images/s, through the store "
            f"{found.images / found.stored:.1f} images/s, ratio {found.ratio:.2f}; "
            f"of processor time {found.work:.2f}"
        )
    if options.part in (None, "second-use"):
        for classes in (37, 1000):
            with tempfile.TemporaryDirectory() as folder:
                use = second_use(classes, 16, options.turns, Path(folder))
            print(
                f"second use: {use.rows} rows, first batch after {1000 * use.first_batch:.1f} ms; "
                f"before that, opening and drawing {1000 * use.draw:.1f} ms"
            )
    if options.part in (None, "training"):
        for name, size in SIZES.items():
            wall, cpu = training(*size, options.epochs)
            print(
                f"training, {name}-sized, {options.epochs} epochs: {wall:.2f} s ({cpu:.2f} s CPU)"
            )
    print(f"load average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
