"""On which images models are validated, and how good they are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.trainables.trials import TASK, TWO_SEEDS, residual_trial
from trainables.data.base import image_keys
from trainables.encoded_task import EncodedTask
from trainables.trial_run import TrialRun
from trainables.validation import fit_sharpness, image_numbers, pool_of, validation_metrics

POOLED = replace(TWO_SEEDS, validation="pooled", objective="likelihood")


def test_the_best_temperature() -> None:
    """Logits that are log probabilities have none; multiplied by 4, it is 1/4."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=rng).log_softmax(-1)
    labels = torch.multinomial(logits.exp(), 1, generator=rng)[:, 0]
    plain = fit_sharpness(logits, labels)
    assert plain == pytest.approx(1.0, rel=0.15)
    assert fit_sharpness(4 * logits, labels) == pytest.approx(plain / 4, rel=0.01)


@pytest.mark.parametrize("right", [True, False])
def test_likelihood_is_a_probability(right: bool) -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    labels = torch.tensor([0, 1] if right else [1, 0])
    found = validation_metrics(logits, labels)
    assert found["val/accuracy"] == float(right)
    expected = 1.0 if right else torch.tensor([9 / 16, 0.0]).softmax(-1)[1].item()
    assert found["val/likelihood"] == pytest.approx(expected, rel=1e-3)
    assert 0 <= found["val/likelihood"] <= 1


def test_a_pool_has_every_labelled_image_once_and_none_that_was_trained_on(
    encoded_task: EncodedTask,
) -> None:
    draws = [encoded_task.source.draw(e.dataset, e.shots, e.seed) for e in POOLED.episodes]
    labelled = {key for d in draws for part in (d.train, d.val) for key in image_keys(part)}
    numbers = image_numbers(encoded_task, POOLED.episodes, "pooled")
    for episode, drawn, own in zip(POOLED.episodes, draws, numbers, strict=True):
        pool = pool_of(encoded_task, episode, POOLED.episodes)
        assert set(pool.keys) == labelled - set(image_keys(drawn.train))
        assert len(pool.view) == len(pool.keys) == len(set(own.tolist()))
    assert len(set(torch.cat(numbers).tolist())) <= len(labelled)


def test_with_one_draw_the_pool_is_its_validation_images(encoded_task: EncodedTask) -> None:
    (episode,) = TASK.episodes
    pool, own = pool_of(encoded_task, episode, TASK.episodes).view, encoded_task.views(episode)[1]
    assert torch.equal(pool.features(), own.features())
    assert torch.equal(pool.labels, own.labels)
    rows = torch.tensor([3, 0, 5])
    assert torch.equal(pool.images(rows), own.images(rows))


def test_a_trial_reports_its_objective(encoded_task: EncodedTask) -> None:
    """It is validated once per report step, on the pool; accuracies are exact means."""
    run = TrialRun(residual_trial(16), POOLED, encoded_task)
    reports = []
    while not run.finished:
        reports.append(run.advance())
    assert reports[-1].values == tuple(r.metrics["val/likelihood"] for r in reports)
    validated = [r["epoch"] for report in reports for r in report.rows if "val/accuracy" in r]
    assert validated == [2.0 * step for step in range(1, 9)]
    accuracies = [e.validate()["val/accuracy"] for e in run.episodes]
    assert reports[-1].metrics["val/accuracy"] == pytest.approx(math.fsum(accuracies) / 2)
    plain = TrialRun(residual_trial(16), replace(POOLED, objective="accuracy"), encoded_task)
    assert plain.advance().values == (reports[0].metrics["val/accuracy"],)
