"""A trained model that classifies images of any size: from a sweep, an export, or MLflow.

Notation: b images, c classes, s image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.backbones.base import Preprocess
from trainables.images.decode import ImageError, Readable, decoded, read_image

BATCH = 64
"""Images that go through the network at a time."""


@dataclass(frozen=True)
class Predicted:
    """The predictions for a batch of images."""

    rows: list[int]
    """Positions of the b images that could be read."""
    probabilities: Tensor
    """float32 [b, c], on the CPU."""
    done: int
    """Images that are done, unreadable ones included."""


@dataclass(frozen=True)
class Classifier:
    """A trained model, ready to classify."""

    classes: tuple[str, ...]
    """Names of the classes."""
    preprocess: Preprocess
    """The test-time image transform."""
    network: Callable[[Tensor], Tensor]
    """Preprocessed images float32 [b, 3, s, s] -> logits [b, c], both on `device`."""
    device: str
    """`cpu` or `cuda`."""

    def predict(self, images: Any) -> tuple[list[str], np.ndarray]:
        """Classify a list of images, or one: paths, PIL images or uint8 arrays [h, w, 3].

        Returns the most probable class of each image and the probabilities float32 [n, c], in the
        order of `classes`. Raises `ImageError` for the first image that cannot be read.
        """
        is_one = isinstance(images, str | Path) or hasattr(images, "convert")
        photos = Photos([images] if is_one else images)
        found = [batch.probabilities for batch in self.batches(photos)]
        for row, reason in photos.unreadable.items():
            raise ImageError(f"image {row} ({photos.name(row)}) cannot be read: {reason}")
        whole = torch.cat([torch.zeros(0, len(self.classes)), *found])
        return [self.classes[place] for place in whole.argmax(1).tolist()], whole.numpy()

    @torch.no_grad()
    def batches(self, photos: Photos) -> Iterator[Predicted]:
        """Classify images batch by batch, in order; `photos` records those that cannot be read.
        While a batch is classified, the next one is decoded."""
        done = 0
        for batch in decoded(photos, BATCH, max(2, torch.get_num_threads())):
            rows = [row for row, image in enumerate(batch, start=done) if image.numel()]
            done += len(batch)
            probabilities = torch.zeros(0, len(self.classes))
            if rows:
                readable = [image for image in batch if image.numel()]
                views = self.preprocess.resize(readable, self.device)
                logits = self.network(self.preprocess.normalise(views))
                probabilities = logits.float().softmax(-1).cpu()
            yield Predicted(rows, probabilities, done)


class Photos(Readable):
    """Images to classify: paths, PIL images or uint8 arrays [h, w, 3]."""

    def __init__(self, images: Iterable[Any]) -> None:
        self._images = list(images)
        self.unreadable: dict[int, str] = {}
        """Position -> why the image cannot be read, for those that were tried."""

    def __len__(self) -> int:
        return len(self._images)

    def name(self, position: int) -> str:
        """The path of an image, or the kind of object that it is."""
        image = self._images[position]
        return str(image) if isinstance(image, str | Path) else type(image).__name__

    def read(self, position: int) -> Tensor:
        """Decode one image: uint8 [3, h, w]; empty if it cannot be read."""
        image = self._images[position]
        try:
            if isinstance(image, str | Path):
                return read_image(Path(image))
            return _pixels(image.convert("RGB") if hasattr(image, "convert") else image)
        except ImageError as error:
            self.unreadable[position] = str(error)
            return torch.empty(3, 0, 0, dtype=torch.uint8)


def _pixels(image: Any) -> Tensor:
    """An array uint8 [h, w, 3] -> uint8 [3, h, w]; raises `ImageError`."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(
            f"pixels must be uint8 [height, width, 3], got {pixels.dtype} {list(pixels.shape)}"
        )
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
