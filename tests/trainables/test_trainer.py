"""One training: reproducible, resumable in the middle, and its figures recomputed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainables.trials import mask_trial, residual_trial, zero_shot_trial
from trainables.backbones.base import BackboneError
from trainables.data.base import DataError
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask, zero_shot_logits
from trainables.images.resample import Crop, random_crop
from trainables.methods.base import Batch
from trainables.methods.taskres import TaskRes, TaskResConfig
from trainables.trainer import NonFiniteError, Trainer
from trainables.trial import Episode, TrialConfig
from trainables.validation import accuracy
from trainables.view import AUGMENTED_VIEWS, View

TRIALS = {
    "taskres": residual_trial(),
    "taskres-alpha": replace(residual_trial(), method_config=TaskResConfig(learn_alpha=True)),
    "taskres-crops": replace(residual_trial(), crop_scale=0.5),
    "rmt": mask_trial(),
    "rmt-whole": mask_trial(crop_scale=1.0),
    "rmt-plain": mask_trial(leak=0.0),
    "rmt-dynamic": mask_trial(masked="dynamic"),
}


def open_trainer(trial: TrialConfig, encoded_task: EncodedTask, seed: int = 1) -> Trainer:
    return Trainer(trial, encoded_task, Episode("digits", 2, seed))


def pictures(view: View) -> Tensor:
    """All test views."""
    return view.images(torch.arange(len(view)))


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Bit for bit, in the same order."""
    return list(first) == list(second) and all(map(torch.equal, first.values(), second.values()))


class Spy:
    """Notes the batches of a trainer's method, and may draw more random numbers."""

    def __init__(self, trainer: Trainer, draws: int = 0) -> None:
        self.batches: list[Batch] = []
        original = trainer.method.backward

        def backward(batch: Batch, rng: torch.Generator) -> dict[str, float]:
            self.batches.append(batch)
            torch.rand(draws, generator=rng)
            return original(batch, rng)

        trainer.method.backward = backward  # type: ignore[method-assign]


class Blind:
    """Images that know what they look like and are not to be looked at."""

    def __init__(self, content: str) -> None:
        self._content = content

    def content(self) -> str:
        return self._content


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_the_same_seed_gives_the_same_training(
    trial: TrialConfig, encoded_task: EncodedTask
) -> None:
    first, second = open_trainer(trial, encoded_task), open_trainer(trial, encoded_task)
    for _ in range(2):
        metrics = first.run_epoch()
        torch.manual_seed(7)  # what others do with the global generator does not matter
        assert second.run_epoch() == metrics
    assert same(first.state()[0], second.state()[0])


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_another_seed_gives_another_training(trial: TrialConfig, encoded_task: EncodedTask) -> None:
    first, second = (
        open_trainer(trial, encoded_task),
        open_trainer(replace(trial, seed=1), encoded_task),
    )
    assert torch.equal(pictures(first.train), pictures(second.train))  # the draw is the task's
    first.run_epoch()
    second.run_epoch()
    assert not same(first.state()[0], second.state()[0])
    other = open_trainer(trial, encoded_task, 2).train
    assert not torch.equal(pictures(other), pictures(first.train))


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_training_changes_nothing_of_the_encoded_task(
    trial: TrialConfig, encoded_task: EncodedTask
) -> None:
    """A warm worker's second trial gives what a fresh worker's first one gives."""
    fresh = open_trainer(trial, EncodedTask("tiny", "cpu", DataSource()))
    cold = fresh.run_epoch()
    open_trainer(mask_trial(1, masked="all"), encoded_task).run_epoch()
    warm = open_trainer(trial, encoded_task)
    assert warm.run_epoch() == cold
    assert same(warm.state()[0], fresh.state()[0])


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_a_continued_training_is_the_uninterrupted_one(
    trial: TrialConfig, encoded_task: EncodedTask
) -> None:
    """From the state after every epoch, the one before the first included."""
    whole = open_trainer(trial, encoded_task)
    states, rows = [], []
    for _ in range(trial.optim.epochs):
        tensors, plain = whole.state()
        states.append(({key: tensor.clone() for key, tensor in tensors.items()}, plain))
        rows.append(whole.run_epoch())
    for epoch, (tensors, plain) in enumerate(states):
        continued = open_trainer(trial, encoded_task)
        continued.load_state(tensors, plain)
        assert continued.epoch == epoch
        assert [continued.run_epoch() for _ in rows[epoch:]] == rows[epoch:]
        assert same(continued.state()[0], whole.state()[0])
        assert continued.method.artifact()[1] == whole.method.artifact()[1]
        assert same(continued.method.artifact()[0], whole.method.artifact()[0])


def test_dynamic_masks_are_chosen_once_and_kept(encoded_task: EncodedTask) -> None:
    trainer = open_trainer(mask_trial(masked="dynamic"), encoded_task)
    candidates = set(trainer.method.trainable())
    trainer.run_epoch()
    chosen = set(trainer.method.trainable())
    assert chosen < candidates  # else the tests with it show less than they seem to
    trainer.run_epoch()
    assert set(trainer.method.trainable()) == chosen


@pytest.mark.parametrize("name", ["rmt", "rmt-whole", "taskres"])
def test_a_methods_appetite_for_random_numbers_changes_no_batch(
    name: str, encoded_task: EncodedTask
) -> None:
    frugal, hungry = (
        open_trainer(TRIALS[name], encoded_task),
        open_trainer(TRIALS[name], encoded_task),
    )
    spies = Spy(frugal), Spy(hungry, draws=1000)
    for _ in range(2):
        frugal.run_epoch()
        hungry.run_epoch()
    assert len(spies[0].batches) == len(spies[1].batches) > 2
    for first, second in zip(spies[0].batches, spies[1].batches, strict=True):
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.inputs, second.inputs)


def test_crops_do_not_change_the_order_of_images(encoded_task: EncodedTask) -> None:
    cropped, whole = (
        open_trainer(TRIALS["rmt"], encoded_task),
        open_trainer(TRIALS["rmt-whole"], encoded_task),
    )
    spies = Spy(cropped), Spy(whole)
    for _ in range(2):
        cropped.run_epoch()
        whole.run_epoch()
    labels = [[batch.labels.tolist() for batch in spy.batches] for spy in spies]
    assert labels[0] == labels[1]
    half = len(labels[0]) // 2
    assert labels[0][:half] != labels[0][half:]  # a new order each epoch


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(8, [8, 8]), (20, [20]), (64, [20]), (11, [11]), (1, [1] * 20)]
)
def test_the_last_incomplete_batch_is_dropped_where_a_complete_one_exists(
    batch_size: int, sizes: list[int], encoded_task: EncodedTask
) -> None:
    trainer = open_trainer(residual_trial(batch_size=batch_size), encoded_task)
    spy = Spy(trainer)
    trainer.run_epoch()
    assert [len(batch.labels) for batch in spy.batches] == sizes
    seen = torch.cat([batch.inputs for batch in spy.batches])
    assert len(seen.unique(dim=0)) == len(seen)  # no image twice in an epoch
    rows = (seen[:, None] == trainer.train.features()[None]).all(-1)
    assert (rows.sum(1) == 1).all()
    labels = trainer.train.labels[rows.int().argmax(1)]
    assert torch.equal(torch.cat([batch.labels for batch in spy.batches]), labels)


@pytest.mark.parametrize("name", ["rmt", "rmt-whole"])
def test_teacher_logits_are_those_of_the_very_view(name: str, encoded_task: EncodedTask) -> None:
    trainer = open_trainer(TRIALS[name], encoded_task)
    spy = Spy(trainer)
    for _ in range(2):
        trainer.run_epoch()
    classes = functional.normalize(encoded_task.class_features("digits", "all", "single"), dim=-1)
    for batch in spy.batches:
        features = functional.normalize(encoded_task.backbone.encode_image(batch.inputs), dim=-1)
        expected = encoded_task.backbone.logit_scale * features @ classes.T
        torch.testing.assert_close(batch.zero_shot_logits, expected, atol=1e-3, rtol=1e-5)


def test_teacher_logits_for_a_method_that_reads_features(
    encoded_task: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No method needs both yet; the interface allows it."""
    monkeypatch.setattr(TaskRes, "uses_zero_shot", True)
    trainer = open_trainer(residual_trial(), encoded_task)
    spy = Spy(trainer)
    for _ in range(2):
        trainer.run_epoch()
    classes = encoded_task.class_features("digits", "all", "paper")
    for batch in spy.batches:
        expected = zero_shot_logits(batch.inputs, classes, encoded_task.backbone.logit_scale)
        torch.testing.assert_close(batch.zero_shot_logits, expected, atol=1e-3, rtol=1e-5)


def test_no_teacher_where_none_is_used(encoded_task: EncodedTask) -> None:
    for name in ("taskres", "rmt-plain"):
        trainer = open_trainer(TRIALS[name], encoded_task)
        spy = Spy(trainer)
        trainer.run_epoch()
        assert all(batch.zero_shot_logits is None for batch in spy.batches)


def test_digits_are_cropped_but_never_mirrored(
    encoded_task: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def cut(sizes: Tensor, side: int, scale: float, flip: bool, rng: torch.Generator) -> Crop:
        calls.append((scale, flip))
        return random_crop(sizes, side, scale, flip, rng)

    monkeypatch.setattr("trainables.view.random_crop", cut)
    open_trainer(mask_trial(crop_scale=0.7), encoded_task).run_epoch()
    assert set(calls) == {(0.7, False)}
    calls.clear()
    open_trainer(mask_trial(crop_scale=1.0), encoded_task).run_epoch()
    assert calls == []


def test_features_of_crops_take_turns(encoded_task: EncodedTask) -> None:
    """One augmented view an epoch; after the last one, the first again; never the test view."""
    epochs = AUGMENTED_VIEWS + 2
    trial = replace(residual_trial(epochs, batch_size=20), crop_scale=0.5)
    trainer = open_trainer(trial, encoded_task)
    spy = Spy(trainer)
    for _ in range(epochs):
        trainer.run_epoch()
    seen = [batch.inputs[batch.inputs[:, 0].argsort()] for batch in spy.batches]
    views = [trainer.train.features(number, 0.5) for number in range(1, AUGMENTED_VIEWS + 1)]
    for epoch, rows in enumerate(seen):
        view = views[epoch % AUGMENTED_VIEWS]
        assert torch.equal(rows, view[view[:, 0].argsort()])
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[0], trainer.train.features())


def test_features_are_enough(encoded_task: EncodedTask) -> None:
    """Where they are in the store, a method on features opens no image."""
    open_trainer(residual_trial(), encoded_task).run_epoch()
    fresh = open_trainer(residual_trial(), EncodedTask("tiny", "cpu", DataSource()))
    for view in (fresh.train, fresh.val):
        view._split = replace(view._split, images=Blind(view._split.images.content()))
    fresh.run_epoch()


def test_the_learning_rate_follows_the_schedule(encoded_task: EncodedTask) -> None:
    """Adam's first step moves every element with a gradient by the learning rate, no further."""
    trial = residual_trial(epochs=6, batch_size=20, warmup_epochs=1, warmup_lr=1e-4, lr=1e-2)
    trainer = open_trainer(trial, encoded_task)
    rates = [trainer.run_epoch()["train/lr"] for _ in range(6)]
    cosine = [1e-2 * (1 + math.cos(math.pi * e / 6)) / 2 for e in range(5)]
    assert rates == pytest.approx([1e-4, *cosine])
    trainer = open_trainer(trial, encoded_task)
    assert isinstance(trainer.method, TaskRes)
    trainer.run_epoch()
    first = trainer.method.residual.detach().clone()
    assert first.abs().max() == pytest.approx(1e-4, rel=1e-3)
    trainer.run_epoch()
    second = (trainer.method.residual.detach() - first).abs().max()
    assert 5e-3 < second < 1.1e-2


def test_the_method_is_told_the_schedule_it_gets(encoded_task: EncodedTask) -> None:
    trial = mask_trial(epochs=4)
    trainer = open_trainer(trial, encoded_task)
    spy, rates = Spy(trainer), []
    for _ in range(4):
        before = len(spy.batches)
        rate = trainer.run_epoch()["train/lr"]
        rates += [rate] * (len(spy.batches) - before)
    gap = 5e-3
    assert trainer.method.forecast()["flip/budget"] == pytest.approx(sum(rates) / gap)


def test_validation_figures_recomputed(encoded_task: EncodedTask) -> None:
    trainer = open_trainer(residual_trial(lr=5e-2), encoded_task)
    for _ in range(3):
        metrics = trainer.run_epoch()
    assert isinstance(trainer.method, TaskRes)
    backbone, drawn = encoded_task.backbone, encoded_task.source.draw("digits", 2, 1)
    rows = [drawn.val.images.read(row) for row in range(20)]
    images = backbone.preprocess.normalise(backbone.preprocess.resize(rows))
    classes = (
        encoded_task.class_features("digits", "all", "paper")
        + 0.5 * trainer.method.residual.detach()
    )
    correct, loss = 0, 0.0
    for image, label in zip(images, drawn.val.labels.tolist(), strict=True):
        feature = backbone.encode_image(image[None])[0].double()
        logits = [
            float(backbone.logit_scale) * float(feature @ c / feature.norm() / c.norm())
            for c in classes.double()
        ]
        correct += max(range(10), key=logits.__getitem__) == label
        loss += math.log(sum(math.exp(x) for x in logits)) - logits[label]
    assert 0 < correct < 20
    assert metrics["val/accuracy"] == correct / 20
    assert metrics["val/loss"] == pytest.approx(loss / 20, rel=1e-4)
    assert trainer.validate()["val/loss"] == metrics["val/loss"]


def test_scalars_are_means_over_the_steps(encoded_task: EncodedTask) -> None:
    trainer = open_trainer(residual_trial(), encoded_task)
    losses = []
    original = trainer.method.backward

    def backward(batch: Batch, rng: torch.Generator) -> dict[str, float]:
        losses.append(original(batch, rng)["train/loss"])
        return {"train/loss": losses[-1]}

    trainer.method.backward = backward  # type: ignore[method-assign]
    assert trainer.run_epoch()["train/loss"] == pytest.approx(sum(losses) / 2)
    assert len(losses) == 2


def test_training_helps(encoded_task: EncodedTask) -> None:
    """The training loss halves, and validation beats the zero-shot model."""
    floor = open_trainer(zero_shot_trial(), encoded_task, 3).validate()
    trainer = open_trainer(residual_trial(epochs=30, lr=1e-2, batch_size=20), encoded_task, 3)
    rows = [trainer.run_epoch() for _ in range(30)]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 2
    assert rows[-1]["val/loss"] < floor["val/loss"]


def test_leaving_the_real_numbers_is_an_error(encoded_task: EncodedTask) -> None:
    """A step of 1e30 is a number; the length of a residual of such numbers is none."""
    trainer = open_trainer(residual_trial(lr=1e30), encoded_task)
    with pytest.raises(NonFiniteError, match="residual/norm became inf in epoch 1"):
        trainer.run_epoch()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_an_error(value: float, encoded_task: EncodedTask) -> None:
    trainer = open_trainer(residual_trial(), encoded_task)
    trainer.run_epoch()
    original = trainer.method.backward
    trainer.method.backward = (  # type: ignore[method-assign]
        lambda batch, rng: original(batch, rng) | {"train/loss": value}
    )
    with pytest.raises(NonFiniteError, match=r"train/loss became -?(nan|inf) in epoch 2"):
        trainer.run_epoch()


def test_nothing_to_train(encoded_task: EncodedTask) -> None:
    trainer = open_trainer(zero_shot_trial(), encoded_task)
    assert trainer.epochs == 0
    assert set(trainer.validate()) == {"val/accuracy", "val/loss", "val/likelihood"}
    assert open_trainer(residual_trial(7), encoded_task).epochs == 7


def test_accuracy_is_a_fraction() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (DataError, {"episode": Episode("digitz", 1, 0)}),
        (DataError, {"episode": Episode("digits", 590, 0)}),
        (BackboneError, {"task": EncodedTask("tinny", "cpu", DataSource())}),
    ],
)
def test_wrong_names_are_refused(
    error: type[Exception], changes: dict[str, Any], encoded_task: EncodedTask
) -> None:
    arguments = {"task": encoded_task, "episode": Episode("digits", 1, 0)} | changes
    with pytest.raises(error):
        Trainer(residual_trial(), **arguments)
