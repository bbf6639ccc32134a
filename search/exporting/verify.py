"""Compares an export with its trial, in another process, before it is announced.

Notation: n images, c classes, s image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from search.core.child_process import ChildError, call_in_child
from search.exporting.check import INPUTS, LOGITS, OPENING, ORIGINAL, ORIGINALS, ROWS, VIEWS
from search.exporting.model import Model
from trainables.data.base import FeatureRows

TOLERANCE = 1e-3
"""Largest difference of two logits that counts as equal; logits are 100 times a cosine."""
IMAGES = 256
"""Largest number of validation images that are compared, evenly spread."""
_ORIGINALS = 32  # of them in their original size too
_LOOSE = 0.05  # largest difference of their probabilities: Pillow may round grey levels differently
_FLOOR = -40.0  # smaller log probabilities count as equal


class VerificationError(RuntimeError):
    """An export differs from its trial; the message is one line."""


@dataclass(frozen=True)
class Verified:
    """The result of a comparison."""

    images: int
    """Number of validation images."""
    largest: float
    """Largest difference of their logits (`mlflow`: of their log probabilities)."""
    tolerance: float
    """Largest difference that is allowed."""


def verify(model: Model, kind: str, folder: Path, beside: Path) -> Verified:
    """Load the export of this format in a new process and compare; `beside` is for temporary files.
    Raises `VerificationError`."""
    rows = _spread(len(model.logits), IMAGES)
    probe, answer = beside / "probe.safetensors", beside / "answer.safetensors"
    _write_probe(model, rows, probe)
    try:
        call_in_child("search.exporting.check", "ask", kind, str(folder), str(probe), str(answer))
    except ChildError as error:
        raise VerificationError(f"it cannot be loaded: {error}") from None
    found, reference = load_file(answer), model.logits[rows].double().cpu()
    if kind == "mlflow":
        reference = reference.log_softmax(dim=1)
        _compare_originals(found[ORIGINALS], reference[_spread(len(rows), _ORIGINALS)])
    return compare(found[LOGITS], reference, kind == "mlflow")


def compare(found: Tensor, reference: Tensor, logarithms: bool = False) -> Verified:
    """Compare two tensors [n, c]; raises `VerificationError` if they differ by more than the
    tolerance, or in a class that is clearly first. `logarithms`: they are log probabilities."""
    if found.shape != reference.shape:
        raise VerificationError(
            f"it gives {list(found.shape)} logits and the trial {list(reference.shape)}"
        )
    if logarithms:
        found, reference = found.clamp_min(_FLOOR), reference.clamp_min(_FLOOR)
    largest = float((found - reference).abs().max())
    if not largest <= TOLERANCE:  # also for NaN
        raise VerificationError(f"its logits differ by {largest:.2g}, more than {TOLERANCE:g}")
    if reference.shape[1] > 1:
        first, second = reference.topk(2, dim=1).values.T
        clear = first - second > 2 * TOLERANCE
        if not torch.equal(found.argmax(1)[clear], reference.argmax(1)[clear]):
            raise VerificationError("it predicts other classes")
    return Verified(len(reference), largest, TOLERANCE)


def _compare_originals(found: Tensor, reference: Tensor) -> None:
    """Compare log probabilities [n, c] of images that another program has resized."""
    largest = float((found.exp() - reference.exp()).abs().max())
    if not largest <= _LOOSE:
        raise VerificationError(
            f"its probabilities for images that it resizes itself differ by {largest:.2g}, more "
            f"than {_LOOSE:g}"
        )


def _spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` positions, evenly spread, as int64."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _write_probe(model: Model, rows: Tensor, path: Path) -> None:
    tensors = {ROWS: rows}
    images = model.val_images
    if not isinstance(images, FeatureRows):
        views = model.trained.val.images(rows)
        tensors |= {VIEWS: views, INPUTS: model.trained.backbone.preprocess.normalise(views)}
        for number, row in enumerate(rows[_spread(len(rows), _ORIGINALS)].tolist()):
            tensors[f"{ORIGINAL}{number}"] = images.read(row).contiguous()
    save_file(tensors, path, {OPENING: model.spec.to_json()})
