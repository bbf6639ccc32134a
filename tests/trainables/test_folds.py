"""Validation inside the few shots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainables.trials import TASK, mask_trial, residual_trial, zero_shot_trial
from trainables.core.storage import LocalStorage
from trainables.data.base import image_keys
from trainables.encoded_task import EncodedTask
from trainables.folds import FoldedTraining
from trainables.report import Report
from trainables.trainer import Trainer
from trainables.trial import TrialConfig
from trainables.trial_run import TrialRun
from trainables.validation import fold_rows, image_numbers

FOLDS = replace(TASK, shots=(4,), validation="folds", objective="likelihood")
(EPISODE,) = FOLDS.episodes


@pytest.mark.parametrize(("shots", "folds"), [(2, 2), (4, 4), (8, 4)])
def test_folds_are_stratified_and_whole(shots: int, folds: int) -> None:
    labels = torch.arange(5).repeat(shots)[torch.randperm(5 * shots)]
    found = fold_rows(labels, shots)
    assert len(found) == folds
    assert sorted(torch.cat(found).tolist()) == list(range(5 * shots))
    for rows in found:
        assert labels[rows].bincount(minlength=5).tolist() == [shots // folds] * 5


def test_no_fold_is_empty() -> None:
    """With more shots than any class has images."""
    assert [rows.tolist() for rows in fold_rows(torch.tensor([0, 1, 0, 1, 0]), 16)] == [
        [0, 1],
        [2, 3],
        [4],
    ]


def test_no_image_is_validated_by_a_model_that_has_seen_it(encoded_task: EncodedTask) -> None:
    """The models of the folds are those that are trained on the other images alone; the kept one is
    that of an ordinary training."""
    config = residual_trial(3)
    found, alone = (
        FoldedTraining(config, encoded_task, EPISODE),
        Trainer(config, encoded_task, EPISODE),
    )
    for _ in range(3):
        metrics = found.run_epoch()
        alone.run_epoch()
    assert found.artifact()[0].keys() == alone.artifact()[0].keys()
    assert all(map(torch.equal, found.artifact()[0].values(), alone.artifact()[0].values()))
    train = encoded_task.views(EPISODE)[0]
    assert len(found.val) == len(train)
    right = found.validation_logits().argmax(-1) == found.val.labels
    assert metrics["val/accuracy"] == pytest.approx(right.double().mean().item())
    for fold, rows in zip(found._folds, fold_rows(train.labels, 4), strict=True):
        assert torch.equal(fold.val.features(), train.features()[rows])
        assert len(fold.train) == len(train) - len(rows)
        seen = {tuple(row) for row in fold.train.features().tolist()}
        assert not seen & {tuple(row) for row in fold.val.features().tolist()}


def test_the_rows_of_its_predictions_are_the_training_images(encoded_task: EncodedTask) -> None:
    (numbers,) = image_numbers(encoded_task, FOLDS.episodes, "folds")
    drawn = encoded_task.source.draw(EPISODE.dataset, EPISODE.shots, EPISODE.seed)
    assert len(set(numbers.tolist())) == len(image_keys(drawn.train))


@pytest.mark.parametrize("config", [residual_trial(8), mask_trial(2), zero_shot_trial()])
def test_a_trial_survives_an_interruption(
    config: TrialConfig, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    whole = reports(TrialRun(config, FOLDS, encoded_task))
    broken = TrialRun(config, FOLDS, encoded_task)
    broken.advance()
    broken.save(LocalStorage(tmp_path))
    again = TrialRun(config, FOLDS, encoded_task)
    assert again.load(LocalStorage(tmp_path))
    rest = reports(again)
    assert (rest[-1] if rest else again.report()).values == whole[-1].values
    assert 0 < whole[-1].values[-1] <= 1


def reports(run: TrialRun) -> list[Report]:
    found = []
    while not run.finished:
        found.append(run.advance())
    return found
