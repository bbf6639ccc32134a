"""Cross-validated test figures: the pooled predictions of one sweep per fold.

Each image is in the test split of exactly one fold, whose sweep has neither trained on it nor
selected by it. The pooled accuracy therefore estimates what the whole procedure, search included,
reaches with (k - 1) / k of the images.

Notation: n images of all folds, k folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from search.evaluation.predictions import PredictionTable
from search.evaluation.record import Gain, Label
from search.evaluation.statistics import Difference, half_width_over_images


@dataclass(frozen=True)
class CrossValidation:
    """Test figures over all folds."""

    images: int
    """Images, each tested once."""
    accuracy: dict[Label, float]
    """Model -> share of the images that it classifies correctly, as a mean over its draws."""
    gains: tuple[Gain, ...]
    """The winner's gain over each baseline. The interval treats images as independent; the models
    of different folds share training images, so it is slightly too narrow (Bengio and Grandvalet,
    JMLR 5, 2004: no unbiased estimate of that variance exists)."""


def cross_validation(folds: Sequence[PredictionTable]) -> CrossValidation:
    """Pool the test predictions of all folds, one table per fold.

    Raises `ValueError` if an image was tested in two folds.
    """
    tested = Counter(file for table in folds for file in table.files)
    if repeated := [file for file, times in tested.items() if times > 1]:
        raise ValueError(f"Every image must be in one fold, '{repeated[0]}' is in several.")
    evaluated = [{answers.label for answers in table.answers} for table in folds]
    labels = [label for label in get_args(Label) if all(label in found for found in evaluated)]
    right = {label: np.concatenate([_right(table, label) for table in folds]) for label in labels}
    return CrossValidation(
        len(right["winner"]),
        {label: float(values.mean()) for label, values in right.items()},
        tuple(_gain(right["winner"], right[label], label) for label in labels[:-1]),
    )


def _right(table: PredictionTable, label: Label) -> NDArray[np.float64]:
    """[n], the share of the model's draws that classify an image correctly."""
    answers = [found for found in table.answers if found.label == label]
    mean: NDArray[np.float64] = np.mean([table.right(found) for found in answers], axis=0)
    return mean


def _gain(winner: NDArray[np.float64], baseline: NDArray[np.float64], label: Label) -> Gain:
    d = winner - baseline
    mean, half = float(d.mean()), half_width_over_images([(1.0, d)])
    over_images = Difference(mean, mean - half, mean + half)
    return Gain("winner", label, over_images, None, int(np.count_nonzero(d)))
