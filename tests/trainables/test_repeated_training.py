"""Draws with the same training images are trained once, with the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spaces.registry import find_space
from tests.trainables.data.bundles import tensors, write_bundle
from trainables import trial_run
from trainables.core.storage import LocalStorage
from trainables.encoded_task import EncodedTask
from trainables.methods.base import TaskFacts
from trainables.repeated_training import RepeatedTraining
from trainables.trainer import Trainer
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import TrialRun

SEEDS = (1, 2, 3)


def setting(space: str, task: TaskSpec, **optim: Any) -> TrialConfig:
    facts = TaskFacts(task.datasets[0], task.shots[0], 12, "other", False)
    paper = find_space(space).build(facts).paper
    return replace(
        paper,
        optim=replace(paper.optim, epochs=8, batch_size=64)
        if not optim
        else replace(paper.optim, epochs=8, **optim),
    )


def run_of(config: TrialConfig, task: TaskSpec) -> TrialRun:
    return TrialRun(config, task, EncodedTask(task.backbone, "cpu", task.source("")))


def bundle_task(tmp_path: Path, shots: int) -> TaskSpec:
    spec = f"bundle:{write_bundle(tmp_path / 'b.safetensors', tensors())}"
    return TaskSpec((spec,), spec, (shots,), SEEDS)


def reports(run: TrialRun) -> list[trial_run.Report]:
    found = []
    while not run.finished:
        found.append(run.advance())
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the draws of which an epoch is trained."""
    seeds: list[int] = []
    inner = Trainer.run_epoch

    def run_epoch(trainer: Trainer, validate: bool = True) -> dict[str, float]:
        seeds.append(trainer.episode.seed)
        return inner(trainer, validate)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    return seeds


@pytest.mark.parametrize("space", ["taskres", "clip-adapter", "gda"])
def test_the_same_numbers(space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four images per class, in one batch; CLIP-Adapter begins with random values, so that its
    three trainings are not the same."""
    task = bundle_task(tmp_path, 4)
    config = setting(space, task)
    with monkeypatch.context() as patch:
        patch.setattr(trial_run, "share_repeated", lambda trainings: trainings)
        apart = reports(run_of(config, task))
    trained = counted(monkeypatch)
    run = run_of(config, task)
    together = reports(run)
    assert [type(e) for e in run.episodes] == [Trainer, RepeatedTraining, RepeatedTraining]
    assert set(trained) == {"taskres": {1}, "clip-adapter": {1, 2, 3}, "gda": set()}[space]
    for one, other in zip(apart, together, strict=True):
        assert one.values == other.values
        assert one.metrics.keys() == other.metrics.keys()
        for name, value in one.metrics.items():
            assert other.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    names = run.save_artifacts(LocalStorage(tmp_path / "artifacts"))
    assert len(names) == 3


@pytest.mark.parametrize(("shots", "batch"), [(2, 64), (4, 5)])
def test_other_draws_and_several_batches_are_trained_apart(
    shots: int, batch: int, tmp_path: Path
) -> None:
    task = bundle_task(tmp_path, shots)
    run = run_of(setting("taskres", task, batch_size=batch), task)
    assert {type(episode) for episode in run.episodes} == {Trainer}


@pytest.mark.parametrize("space", ["taskres", "clip-adapter"])
def test_it_continues_from_a_checkpoint(space: str, tmp_path: Path) -> None:
    task = bundle_task(tmp_path, 4)
    config = setting(space, task)
    whole = reports(run_of(config, task))
    folder = LocalStorage(tmp_path / "checkpoint")
    run = run_of(config, task)
    for _ in range(3):
        run.advance()
        run.save(folder)
        run = run_of(config, task)
        assert run.load(folder)
    rest = reports(run)
    assert rest[-1].values == whole[-1].values
    assert rest[-1].metrics == whole[-1].metrics
