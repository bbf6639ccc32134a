"""Stages in sequence: trained as one training, each on the result of the previous one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainables.trials import TASK, TWO_SEEDS, mask_trial, residual_trial
from trainables.core.storage import LocalStorage
from trainables.encoded_task import EncodedTask
from trainables.methods.base import MethodError, TaskFacts
from trainables.methods.registry import METHODS
from trainables.report import REPORTS_PER_TRIAL
from trainables.stages import Pipeline, open_training
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig
from trainables.trial_run import TrialRun

CELL = Episode("digits", 2, 1)
MASKS = mask_trial(2)
CHAIN = residual_trial(3, batch_size=20).after(MASKS)


def trained(config: TrialConfig, encoded_task: EncodedTask, episode: Episode = CELL) -> Pipeline:
    training = Pipeline(config, encoded_task, episode)
    for _ in range(training.epochs):
        training.run_epoch()
    return training


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_only_a_pipeline_is_one(encoded_task: EncodedTask) -> None:
    assert isinstance(open_training(MASKS, encoded_task, CELL), Trainer)
    assert isinstance(open_training(CHAIN, encoded_task, CELL), Pipeline)


def test_it_is_the_stages_one_after_another(encoded_task: EncodedTask) -> None:
    """The second sees the masked backbone: its features, its zero-shot classifier."""
    pipeline = Pipeline(CHAIN, encoded_task, CELL)
    assert (pipeline.epoch, pipeline.epochs) == (0, 5)
    masks = Trainer(MASKS, encoded_task, CELL)
    for _ in range(2):
        assert pipeline.run_epoch() == masks.run_epoch()
    masked = masks.method.merged_backbone()
    assert masked.fingerprint != encoded_task.backbone.fingerprint
    residual = Trainer(CHAIN, encoded_task.with_backbone(masked), CELL)
    assert pipeline.epoch == 2
    for _ in range(3):
        assert pipeline.run_epoch() == residual.run_epoch()
    assert pipeline.epoch == pipeline.epochs == 5
    images = encoded_task.backbone.preprocess.normalise(
        encoded_task.views(CELL)[1].images(torch.arange(len(pipeline.val)))
    )
    expected = residual.method(masked.encode_image(images))
    torch.testing.assert_close(pipeline.logits(pipeline.val), expected, atol=1e-3, rtol=1e-5)
    unmasked = residual.method(encoded_task.backbone.encode_image(images))
    assert not torch.allclose(pipeline.logits(pipeline.val), unmasked, atol=1e-1)


@pytest.mark.parametrize("done", range(6))
def test_any_state_continues_bit_for_bit(done: int, encoded_task: EncodedTask) -> None:
    """In the middle of either stage, between them, before and after all."""
    first = Pipeline(CHAIN, encoded_task, CELL)
    for _ in range(done):
        first.run_epoch()
    tensors, plain = first.state()
    state = {name: tensor.clone() for name, tensor in tensors.items()}, plain
    second = Pipeline(CHAIN, encoded_task, CELL)
    second.load_state(*state)
    assert second.epoch == done
    assert same(second.state()[0], state[0])
    assert second.state()[1] == state[1]
    for _ in range(5 - done):
        assert first.run_epoch() == second.run_epoch()
    assert same(first.artifact()[0], second.artifact()[0])
    assert torch.equal(first.logits(first.val), second.logits(second.val))


def test_what_is_said_before_training_is_said_again_at_any_time(encoded_task: EncodedTask) -> None:
    """A trial that is continued in its second stage has the forecast of its first."""
    slow = replace(mask_trial(1), optim=replace(mask_trial(1).optim, lr=1e-6))
    alone, config = Trainer(slow, encoded_task, CELL), residual_trial(1).after(slow)
    assert alone.warnings()
    pipeline = Pipeline(config, encoded_task, CELL)
    assert pipeline.forecast() == alone.forecast() != {}
    pipeline.run_epoch()
    assert pipeline.method.forecast() == {}
    assert pipeline.forecast() == alone.forecast()
    continued = Pipeline(config, encoded_task, CELL)
    continued.load_state(*pipeline.state())
    assert continued.forecast() == alone.forecast()
    assert continued.warnings() == alone.warnings()


def test_a_state_is_loaded_over_a_later_one(encoded_task: EncodedTask) -> None:
    start = Pipeline(CHAIN, encoded_task, CELL).state()
    used = trained(CHAIN, encoded_task)
    used.load_state(*start)
    assert used.epoch == 0
    assert used.run_epoch() == Pipeline(CHAIN, encoded_task, CELL).run_epoch()


def test_artifact_there_and_back(encoded_task: EncodedTask) -> None:
    first = trained(CHAIN, encoded_task)
    tensors, metadata = first.artifact()
    assert {name.partition("/")[0] for name in tensors} == {"0", "1"}
    assert metadata["format"] == "pipeline"
    second = Pipeline(CHAIN, encoded_task, CELL)
    second.load_artifact(tensors, metadata)
    assert second.epoch == second.epochs
    assert torch.equal(first.logits(first.val), second.logits(second.val))
    assert same(second.artifact()[0], tensors)
    # Other images than its own: those of another encoded task's view.
    other = encoded_task.views(Episode("digits", 2, 9))[1]
    assert torch.equal(first.logits(other), second.logits(other))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "taskres"}, "a pipeline's artifact has the metadata"),
        ({"stages": "[]"}, "2 stages and the artifact 0"),
        ({"stages": "["}, "list of stages is unreadable"),
        ({"stages": '[{"format": "taskres"}, {}]'}, "format"),
    ],
)
def test_another_artifact_is_refused(
    change: dict[str, str], words: str, encoded_task: EncodedTask
) -> None:
    tensors, metadata = trained(CHAIN, encoded_task).artifact()
    with pytest.raises(MethodError, match=words):
        Pipeline(CHAIN, encoded_task, CELL).load_artifact(tensors, metadata | change)


def test_other_classes_keep_the_masks(encoded_task: EncodedTask) -> None:
    """The masked tower stays; the residual, which belongs to the classes, goes."""
    episode = Episode("digits", 2, 1, "base")
    pipeline = trained(CHAIN, encoded_task, episode)
    residual = pipeline.method.artifact()[0]["residual"]
    assert residual.abs().max() > 0
    pipeline.set_classes("digits", "new")
    masks = Trainer(MASKS, encoded_task, episode)
    for _ in range(2):
        masks.run_epoch()
    view = encoded_task.views(Episode("digits", 2, 1, "new"))[1]
    masked = encoded_task.with_backbone(masks.method.merged_backbone())
    zero_shot = masked.zero_shot("digits", "new", CHAIN.method_config.prompts)
    images = encoded_task.backbone.preprocess.normalise(view.images(torch.arange(len(view))))
    found = pipeline.logits(view)
    assert found.shape == (len(view), 5)
    torch.testing.assert_close(found, zero_shot(images), atol=1e-3, rtol=1e-5)


def test_nothing_to_train_at_the_end(encoded_task: EncodedTask) -> None:
    """The last row is that of the last stage: a cache of the masked backbone's features."""
    recipe = METHODS["tip-adapter"].preset("paper", TaskFacts("digits", 2, 20))
    last = TrialConfig("tip-adapter", "paper", recipe.config, recipe.optim)
    pipeline = Pipeline(last.after(MASKS), encoded_task, CELL)
    assert pipeline.epochs == 2
    rows = [pipeline.run_epoch() for _ in range(2)]
    assert "mask/flipped" in rows[1]
    assert rows[1] | pipeline.validate() == rows[1]
    masks = Trainer(MASKS, encoded_task, CELL)
    alone = [masks.run_epoch() for _ in range(2)]
    assert rows[0] == alone[0]
    assert rows[1]["val/loss"] != alone[1]["val/loss"]
    assert pipeline.method.training_free
    again = Pipeline(last.after(MASKS), encoded_task, CELL)
    again.load_state(*pipeline.state())
    assert again.validate() == pipeline.validate()


def test_a_passing_backbone_leaves_nothing_in_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoded_task = EncodedTask("tiny", "cpu", TASK.source(""))
    first = Trainer(replace(CHAIN, before=None), encoded_task, CELL)
    first.run_epoch()  # features of the backbone as it is are kept
    trained(MASKS.after(MASKS), encoded_task)  # what training on images needs of it too
    kept = sorted(tmp_path.rglob("*.arrow"))
    assert kept
    trained(CHAIN, encoded_task)
    assert sorted(tmp_path.rglob("*.arrow")) == kept


def test_a_stage_that_none_can_follow(encoded_task: EncodedTask) -> None:
    wrong = MASKS.after(residual_trial(1))
    (problem,) = wrong.problems()
    assert "'taskres' does not: use one of" in problem
    assert "rmt" in problem
    with pytest.raises(MethodError, match="use it as the last stage"):
        trained(wrong, encoded_task)


def test_three_stages(encoded_task: EncodedTask) -> None:
    """Masks on masked masks: each stage's fingerprint builds on the last one's."""
    config = residual_trial(1).after(mask_trial(1, masked="mlp")).after(MASKS)
    assert [stage.epochs for stage in config.stages] == [2, 1, 1]
    assert [stage.method for stage in config.stages] == ["rmt", "rmt", "taskres"]
    pipeline = trained(config, encoded_task)
    tensors, metadata = pipeline.artifact()
    again = Pipeline(config, encoded_task, CELL)
    again.load_artifact(tensors, metadata)
    assert torch.equal(again.logits(again.val), pipeline.logits(pipeline.val))


# --- as a trial ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "residual", "ends"),
    [
        (2, 3, [1, 2, 3, 4, 5]),
        (10, 200, [3, 6, 9, 10, 60, 110, 160, 210]),
        (30, 25, [8, 16, 24, 30, 37, 44, 51, 55]),
        (1, 1, [1, 2]),
    ],
)
def test_each_stage_has_as_many_parts(
    masks: int, residual: int, ends: list[int], encoded_task: EncodedTask
) -> None:
    config = residual_trial(residual).after(mask_trial(masks))
    run = TrialRun(config, TASK, encoded_task)
    assert run._ends == ends
    assert run.steps == len(ends) <= REPORTS_PER_TRIAL


def test_a_trial_of_two_stages(encoded_task: EncodedTask, tmp_path: Path) -> None:
    """Every report, and a continuation after each of them."""
    run = TrialRun(CHAIN, TWO_SEEDS, encoded_task)
    folder, reports = LocalStorage(tmp_path), []
    while not run.finished:
        reports.append(run.advance())
        other = TrialRun(CHAIN, TWO_SEEDS, encoded_task)
        run.save(folder)
        assert other.load(folder)
        run = other
    assert [len(report.values) for report in reports] == [1, 2, 3, 4, 5]
    rows = reports[-1].values
    alone = [trained(CHAIN, encoded_task, Episode("digits", 1, seed)) for seed in TWO_SEEDS.seeds]
    mean = sum(training.validate()["val/accuracy"] for training in alone) / 2
    assert rows[-1] == mean
    assert run.save_artifacts(folder) == [
        "artifact-seed1.safetensors",
        "artifact-seed4.safetensors",
    ]


def test_a_trial_of_two_stages_in_sequence(encoded_task: EncodedTask) -> None:
    run = TrialRun(CHAIN, TWO_SEEDS, encoded_task, in_sequence=True)
    assert run.steps == 2
    first, second = run.advance(), run.advance()
    assert [row["epoch"] for row in first.rows] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in second.rows] == [6, 7, 8, 9, 10]


# --- the record ----------------------------------------------------------------------------------


def test_after_and_seeded() -> None:
    chain: Any = residual_trial(1).after(mask_trial(2)).after(mask_trial(3))
    assert [stage.epochs for stage in chain.stages] == [3, 2, 1]
    assert [stage.seed for stage in chain.seeded(7).stages] == [7, 7, 7]
    held = residual_trial(1).after(replace(mask_trial(2).seeded(3), fixed=True))
    assert [stage.seed for stage in held.seeded(7).stages] == [3, 7]
    assert TrialConfig.from_dict(held.to_dict()) == held
    assert held.fingerprint() != replace(held, before=None).fingerprint()


def test_only_the_first_stages_can_be_fixed() -> None:
    held = replace(mask_trial(1), fixed=True)
    assert mask_trial(2).after(held).problems() == []
    assert residual_trial(1).after(mask_trial(2)).after(held).problems() == []
    late = residual_trial(1).after(held).after(mask_trial(2))
    assert [p for p in late.problems() if "a fixed stage can follow only fixed ones" in p]
