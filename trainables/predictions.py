"""The validation predictions of a finished trial, from which a sweep's result is chosen.

Notation: n validation rows of all episodes, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from trainables.core.storage import Storage
from trainables.core.tensor_file import read_checked, write_checked
from trainables.encoded_task import EncodedTask
from trainables.trial import TaskSpec
from trainables.validation import image_numbers

if TYPE_CHECKING:
    from trainables.training import Training

VALIDATION = "validation.safetensors"
"""The file, in the trial's folder."""
_LARGEST = 1 << 20  # numbers of one file; of more images, evenly spread ones are kept
_FORMAT = {"format": "validation-predictions", "format_version": "1"}
_NEVER = -1e4  # log-probability of a class that a data set does not have; fits float16


@dataclass(frozen=True)
class ValidationPredictions:
    """What the models of a trial predict for the images that they are validated on.

    An image has a row per model that is validated on it. Equal tasks have equal rows.
    """

    log_probs: Tensor
    """float16 [n, c]."""
    labels: Tensor
    """int64 [n]."""
    images: Tensor
    """int64 [n]: a number per distinct image."""


def write_predictions(
    folder: Storage, trainings: Sequence[Training], task: TaskSpec, encoded: EncodedTask
) -> None:
    """Write the predictions of finished trainings, one per episode of the task. Raises
    `StorageError`."""
    logs = [training.validation_logits().float().log_softmax(-1).cpu() for training in trainings]
    width = max(part.shape[1] for part in logs)
    wide = [functional.pad(part, (0, width - part.shape[1]), value=_NEVER) for part in logs]
    whole = torch.cat(wide).clamp(min=_NEVER)
    stride = -(-whole.numel() // _LARGEST)
    tensors = {
        "log_probs": whole[::stride].half(),
        "labels": torch.cat([training.val.labels.cpu() for training in trainings])[::stride],
        "images": torch.cat(image_numbers(encoded, task.episodes, task.validation))[::stride],
    }
    write_checked(folder, VALIDATION, tensors, _FORMAT)


def read_predictions(folder: Storage) -> ValidationPredictions | None:
    """The predictions in a trial's folder; None if there are none, or none that are undamaged.
    Raises `StorageError`."""
    found = read_checked(folder, VALIDATION)
    if found is None or found[1] != _FORMAT:
        return None
    return ValidationPredictions(**found[0])
