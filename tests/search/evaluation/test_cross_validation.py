"""Pooled test figures of the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from search.evaluation.cross_validation import cross_validation
from search.evaluation.predictions import ModelPredictions, PredictionTable
from search.evaluation.record import Label


def model(label: Label, said: Sequence[int], seed: int = 2) -> ModelPredictions:
    confidence = np.ones(len(said), np.float32)
    return ModelPredictions(label, "folder:a", 4, seed, np.array(said, np.uint16), confidence)


def fold(names: str, truth: Sequence[int], *answers: ModelPredictions) -> PredictionTable:
    images = np.arange(len(truth), dtype=np.int32)
    right = np.array(truth, np.uint16)
    return PredictionTable("folder:a", "test", ("x", "y"), images, tuple(names), right, answers)


def test_every_image_counts_once_whatever_the_size_of_its_fold() -> None:
    found = cross_validation(
        [
            fold("abc", [0, 1, 0], model("zero-shot", [1, 1, 1]), model("winner", [0, 1, 1])),
            fold("d", [0], model("zero-shot", [1]), model("winner", [0])),
        ]
    )
    assert found.images == 4
    assert found.accuracy == {"zero-shot": 0.25, "winner": 0.75}
    (gain,) = found.gains
    assert gain.baseline == "zero-shot"
    assert gain.mean == 0.5
    assert gain.changed == 2
    assert gain.over_draws is None
    assert gain.over_images.low == pytest.approx(0.5 - 0.499, abs=1e-3)  # Agresti and Min's, n = 4


def test_several_draws_of_a_fold_are_averaged_and_a_model_that_one_fold_lacks_is_omitted() -> None:
    draws = (model("winner", [0, 0], seed=2), model("winner", [0, 1], seed=3))
    first = fold("ab", [0, 1], model("zero-shot", [0, 0]), model("paper", [0, 0]), *draws)
    second = fold("c", [1], model("zero-shot", [0]), model("winner", [1]))
    found = cross_validation([first, second])
    assert found.accuracy == {
        "zero-shot": pytest.approx(1 / 3),
        "winner": pytest.approx((1 + 0.5 + 1) / 3),
    }


def test_an_image_in_two_folds_is_refused() -> None:
    again = fold("a", [0], model("winner", [0]))
    with pytest.raises(ValueError, match="'a' is in several"):
        cross_validation([again, again])
