"""The benchmark of selection rules on generated features: every step, on a small task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.selection.__main__ import compare, show, train
from benchmarks.selection.bank import configurations, fit, folds, gda_fits, load
from benchmarks.selection.candidates import CANDIDATES, GRID
from benchmarks.selection.report import Outcome, interval, left_out, spearman
from benchmarks.selection.simulate import Bench
from benchmarks.selection.tasks import BenchData, BenchTask
from tests.trainables.data.bundles import METADATA, write_bundle
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.trainer import Trainer
from trainables.trial import Episode

CLASSES, DIMENSION = 4, 8


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> BenchTask:
    """Eight training, eight validation and 25 test images per class, whose texts are misleading."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, DIMENSION, generator=rng)
    found = {"class_features": centres + torch.randn(CLASSES, DIMENSION, generator=rng)}
    for split, rows in (("train", 8), ("val", 8), ("test", 25)):
        labels = torch.arange(CLASSES).repeat(rows)
        noise = torch.randn(len(labels), DIMENSION, generator=rng)
        found |= {f"{split}_features": centres[labels] + noise, f"{split}_labels": labels}
    names = json.dumps([f"class {number}" for number in range(CLASSES)])
    path = tmp_path_factory.mktemp("data") / "made_8shot.safetensors"
    return BenchTask(write_bundle(path, found, METADATA | {"class_names": names}), "made", 4)


def test_the_draws_are_those_of_the_product(task: BenchTask) -> None:
    for draw in task.draws:
        drawn = DataSource().draw(task.bundle.name, task.shots, draw)
        for rows, split in ((task.train_rows(draw), drawn.train), (task.val_rows(draw), drawn.val)):
            assert torch.equal(task.labels[rows], split.labels)
            whole = EncodedTask(task.bundle.name, "cpu", DataSource()).view(split, False)
            assert torch.equal(task.features[rows], whole.features())


def test_trainings_are_those_of_the_product(task: BenchTask) -> None:
    """Without the validation after every epoch; GDA is fitted in another way."""
    data = BenchData(task)
    (_, _), (config, _), *_ = configurations("taskres", data, 3)
    trainer = Trainer(
        config,
        EncodedTask(task.bundle.name, "cpu", DataSource()),
        Episode(task.bundle.name, task.shots, 2),
    )
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    expected = trainer.logits(data.everything).log_softmax(dim=-1)
    assert torch.equal(fit(config, data, 2)[0], expected.half())
    for config, _ in configurations("gda", data, 4):
        first, second = (run(config, data, 1)[0].float() for run in (fit, gda_fits(data)))
        assert first.numpy() == pytest.approx(second.numpy(), rel=1e-2, abs=1e-2)


def test_folds_leave_every_image_out_once(task: BenchTask) -> None:
    parts = folds(task, 1)
    left = torch.cat([out for _, out in parts])
    assert sorted(left.tolist()) == sorted(task.train_rows(1).tolist())
    for kept, out in parts:
        assert not set(kept.tolist()) & set(out.tolist())
        assert task.labels[out].bincount().tolist() == [1] * CLASSES


def test_no_model_is_validated_on_its_training_images(task: BenchTask, tmp_path: Path) -> None:
    train(tmp_path, [task], ["gda"], 4)
    bench = Bench.open(tmp_path, task, ("gda",), folds=False)
    for draw in (1, 2, 3):
        own = set(task.train_rows(draw).tolist())
        rows = {kind: set(bench.rows(kind, draw).tolist()) for kind in ("held-out", "pooled")}
        assert rows["held-out"] < rows["pooled"]
        assert not rows["pooled"] & (own | set(task.test_rows.tolist()))


def test_the_benchmark_compares_all_rules_and_keeps_its_bank(
    task: BenchTask, tmp_path: Path
) -> None:
    tasks, methods = [task, replace(task, shots=8, data_set="other")], ["gda", "tip-adapter"]
    train(tmp_path, tasks, methods, 6)
    found = compare(tmp_path, tasks, methods, seeds=2)
    shown = show(found)
    assert {o.rule for o in found} >= {*CANDIDATES, *map(str, GRID)}
    assert {o.validation for o in found} >= {"held-out", "pooled", "folds, fewer trials"}
    for name in (*CANDIDATES, "auto, even", "auto, halving", "constants chosen"):
        assert name in shown
    assert all(o.accuracy <= 100 and o.members >= 1 for o in found)
    before = load(tmp_path, task, "gda").log_probs
    train(tmp_path, tasks, methods, 6)
    assert torch.equal(load(tmp_path, task, "gda").log_probs, before)


def test_constants_are_chosen_on_the_other_data_sets() -> None:
    good, bad = str(GRID[0]), str(GRID[1])
    common = {"bundle": "b", "shots": 1, "method": "m", "seed": 0, "validation": "pooled"}
    common |= {"zero_shot": 50.0, "paper": 50.0, "top": 60.0, "members": 1}
    common |= {"rank_accuracy": 0.0, "rank_likelihood": 0.0}
    outcomes = [
        Outcome(data_set=name, rule=str(c), accuracy=50.0, **common)
        for name in ("x", "y")
        for c in GRID
    ]
    outcomes += [Outcome(data_set="x", rule=good, accuracy=70.0, **common)]
    outcomes += [Outcome(data_set="y", rule=bad, accuracy=70.0, **common)]
    judged, chosen = left_out(outcomes)
    assert chosen == {"x": bad, "y": good}
    assert {o.rule for o in judged if o.data_set == "x"} == {bad}
    assert interval(outcomes, lambda o: o.top) == (60.0, 60.0)


def test_rank_correlation_counts_ties_as_their_mean_rank() -> None:
    values = torch.tensor([1.0, 2.0, 2.0, 4.0])
    assert spearman(values, values * 3) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert spearman(values, torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.9487, abs=1e-4)
    assert spearman(values, torch.ones(4)) != spearman(values, torch.ones(4))  # NaN
