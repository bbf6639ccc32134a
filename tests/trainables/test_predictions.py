"""Validation predictions of finished trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainables.test_validation import POOLED
from tests.trainables.trials import TWO_SEEDS, residual_trial, zero_shot_trial
from trainables import predictions
from trainables.core.storage import LocalStorage
from trainables.encoded_task import EncodedTask
from trainables.predictions import read_predictions
from trainables.trial import TaskSpec
from trainables.trial_run import TrialRun


@pytest.mark.parametrize("task", [TWO_SEEDS, POOLED])
def test_every_trial_of_a_task_has_the_same_rows(
    task: TaskSpec, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    found = []
    for config in (residual_trial(8), zero_shot_trial()):
        folder = LocalStorage(tmp_path / config.method)
        run = TrialRun(config, task, encoded_task)
        while not run.finished:
            report = run.advance()
        run.save_predictions(folder)
        stored = read_predictions(folder)
        assert stored is not None
        right = stored.log_probs.argmax(-1) == stored.labels
        sizes = [len(e.val) for e in run.episodes]
        mean = sum(part.float().mean() for part in right.split(sizes)) / len(sizes)
        assert float(mean) == pytest.approx(report.metrics["val/accuracy"])
        found.append(stored)
    first, second = found
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.images, second.images)
    assert len(first.images.unique()) < len(first.images) or task is TWO_SEEDS


def test_of_many_images_some_are_kept(
    encoded_task: EncodedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "_LARGEST", 70)
    run = TrialRun(zero_shot_trial(), replace(TWO_SEEDS, shots=(4,)), encoded_task)
    run.advance()
    run.save_predictions(LocalStorage(tmp_path))
    stored = read_predictions(LocalStorage(tmp_path))
    assert stored is not None
    assert stored.log_probs.numel() <= 70
    assert len(stored.labels.unique()) > 1


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    assert read_predictions(LocalStorage(tmp_path)) is None
    (tmp_path / predictions.VALIDATION).write_bytes(b"no tensors")
    assert read_predictions(LocalStorage(tmp_path)) is None
