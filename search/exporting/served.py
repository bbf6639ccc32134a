"""The code of an exported MLflow model, stored with it: images in, classes out.

It needs PyTorch, NumPy, pandas and Pillow, and nothing of the project that wrote it.

Notation: b images, c classes, s image side.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image
from torch import Tensor

BATCH = 64
"""Images that go through the network at a time."""


class Classifier(PythonModel):
    """Images of any size -> the class of each, its probability, and those of all classes."""

    def load_context(self, context: Any) -> None:
        """Open the network and its card."""
        with open(context.artifacts["card"], encoding="utf-8") as file:
            card = json.load(file)
        self.classes = np.array(card["classes"], dtype=object)
        self.preprocess = card["backbone"]["preprocess"]
        self.network = torch.export.load(context.artifacts["network"]).module()

    # MLflow would take an annotation of `model_input` for a schema.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One column, a list or one alone: paths, encoded files (bytes), or pixels [h, w, 3]
        -> `class`, `probability`, and `probabilities` in the order of the card's `classes`."""
        del context, params
        rows = [self.logits(part) for part in _batches(_listed(model_input))]
        logits = torch.cat(rows) if rows else torch.zeros(0, len(self.classes))
        found = logits.double().softmax(dim=1).numpy()
        return pd.DataFrame(
            {
                "class": self.classes[found.argmax(axis=1)],
                "probability": found.max(axis=1),
                "probabilities": [row.tolist() for row in found],
            }
        )

    @torch.no_grad()
    def logits(self, images: Sequence[object]) -> Tensor:
        """b images, each as `predict` takes them -> float32 [b, c]."""
        side, mode = self.preprocess["image_size"], self.preprocess["resize_mode"]
        interpolation = Image.Resampling[self.preprocess["interpolation"].upper()]
        squares = [square(_opened(image), side, mode, interpolation) for image in images]
        mean, std = (torch.tensor(self.preprocess[name]) for name in ("mean", "std"))
        pixels = torch.from_numpy(np.stack(squares)).float() / 255
        logits: Tensor = self.network(((pixels - mean) / std).permute(0, 3, 1, 2).contiguous())
        return logits


def _batches(images: list[object]) -> list[list[object]]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def _listed(given: Any) -> list[object]:
    """Images as a list, which one alone becomes too."""
    if isinstance(given, pd.DataFrame):
        given = given.iloc[:, 0]
    file = isinstance(given, str | os.PathLike | bytes | bytearray | memoryview)
    alone = file or (isinstance(given, np.ndarray) and given.ndim == 3)
    return [given] if alone else list(given)


def _opened(image: object) -> Image.Image:
    """A path, an encoded file or pixels, as an RGB image."""
    if isinstance(image, str | os.PathLike):
        return Image.open(image).convert("RGB")
    if isinstance(image, bytes | bytearray | memoryview):
        return Image.open(io.BytesIO(image)).convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"pixels must be uint8 [height, width, 3], got the shape {list(pixels.shape)}: give "
            "RGB images, or paths or bytes of image files"
        )
    whole = pixels.dtype.kind in "iuf" and bool((pixels == np.floor(pixels)).all())
    # If the brightest float is 1, it may be white or almost black.
    doubtful = pixels.dtype.kind == "f" and pixels.max() <= 1
    if not whole or doubtful or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(
            f"pixels must be whole numbers from 0 to 255, got {pixels.dtype} from {pixels.min()} "
            f"to {pixels.max()}: scale and convert them, e.g. 0 to 1 by "
            "(255 * pixels).round().astype(np.uint8)"
        )
    return Image.fromarray(pixels.astype(np.uint8))


def square(image: Image.Image, side: int, mode: str, interpolation: Any) -> np.ndarray:
    """uint8 [s, s, 3]: the shorter side (`squash`: both) becomes s, and the centre is cut out; or
    the longer side becomes s, and the rest is black (`longest`)."""
    width, height = image.size
    scaled = (side, side)
    if mode == "shortest":  # the longer side is rounded down, as in torchvision
        short = min(width, height)
        scaled = (
            (side, int(side * height / width))
            if width == short
            else (int(side * width / height), side)
        )
    if mode == "longest":
        ratio = max(width, height) / side
        scaled = (max(1, round(width / ratio)), max(1, round(height / ratio)))
    # Along x first, whatever Pillow 13 finds quicker: features do not depend on its version.
    resized = image.resize((scaled[0], height), interpolation).resize(scaled, interpolation)
    left, top = (round((length - side) / 2) for length in scaled)
    if mode == "longest":
        left, top = (-((side - length) // 2) for length in scaled)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


set_model(Classifier())
