"""Mask tuning against the authors' code: every recorded step of every run.

Later steps diverge once a bit near the threshold flips differently, so the first steps are compared
tightly and the last ones by the share of equal bits.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from golden_traces import (
    DEVICES,
    backbone,
    generator,
    images,
    index,
    ramt_prompts,
    relative,
    runs,
    trace,
    zero_shot,
)
from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.core.optim import OptimConfig, make_optimiser
from trainables.data.prompts import class_features
from trainables.methods.base import Batch, BuildContext, ClassTexts, Schedule
from trainables.methods.masking.rmt import MaskTuning, MaskTuningConfig

EARLY = 4


class Replay:
    """Our method in the recorded situation."""

    def __init__(self, name: str, device: str) -> None:
        self.run: dict[str, Any] = index("ramt.json")[name]
        self.kind = name.split("_", maxsplit=1)[0]
        self.trace = trace(name)
        self.backbone: Backbone = backbone(self.kind, device)
        self.images = images(self.kind, device)
        self.optim = OptimConfig(self.run["lr"], self.run["epochs"], self.run["batch_size"])
        self.features = class_features(self.backbone, ramt_prompts(self.run))
        self.method = self.build(self.run["leak"])
        recorded = [name.removesuffix(".mask_real") for name in self.run["masked"]]
        self.names = dict(zip(self.method.trainable(), recorded, strict=True))

    def build(self, leak: float) -> MaskTuning:
        whole = self.kind == "resnet" or self.run["mask_mlp"]
        config = MaskTuningConfig(
            prompts="single",
            masked="all" if whole else "mhsa",
            patch_embedding=True,
            init=self.run["init"],
            threshold=self.run["threshold"],
            leak=leak,
            norm_weight=self.run["mask_loss_weight"],
            purity_eps=1e-8,
        )
        schedule = Schedule(self.optim.learning_rates(len(self.images["x_train"])))
        return MaskTuning.build(
            config, BuildContext(self.backbone, ClassTexts(self.features), schedule)
        )

    def batches(self) -> Iterator[tuple[float, Batch]]:
        """Learning rate and batch of every step, in the recorded order."""
        x, y, size = self.images["x_train"], self.images["y_train"], self.optim.batch_size
        for epoch in range(self.optim.epochs):
            for step in range(self.optim.steps_per_epoch(len(x))):
                rows = slice(step * size, (step + 1) * size)
                teacher = zero_shot(self.backbone, self.features, x[rows])
                yield self.optim.lr_at(epoch), Batch(x[rows], y[rows], teacher)

    def recorded(self, kind: str) -> dict[str, Tensor]:
        """Our parameter name -> recorded tensor, for recorded parameters."""
        keys = {name: f"{kind}/{theirs}.mask_real" for name, theirs in self.names.items()}
        return {n: torch.from_numpy(self.trace[k]) for n, k in keys.items() if k in self.trace}


def test_masked_tensors_and_their_order_are_the_recorded_ones(replay: Replay) -> None:
    for ours, theirs in replay.names.items():
        assert ours.removesuffix(".weight").removesuffix(".in_proj_weight") == theirs


def test_uniforms_are_drawn_per_tensor_in_order(replay: Replay) -> None:
    rng, recorded = generator(replay.run), replay.recorded("step0/uniform")
    for name, score in replay.method.trainable().items():
        drawn = torch.rand(score.shape, generator=rng)
        if name in recorded:
            torch.testing.assert_close(drawn, recorded[name], atol=0, rtol=0)


def test_first_gradients(replay: Replay, device: str) -> None:
    _, batch = next(replay.batches())
    tolerance = 1e-5 if device == "cpu" else 1e-3
    _, (first, second) = replay.build(leak=1.0).mask_gradients(batch)
    for name, wanted in replay.recorded("step0/grad_ce").items():
        assert relative(first[name].cpu(), wanted) < tolerance, name
    for name, wanted in replay.recorded("step0/grad_kl").items():
        # Student and teacher are still equal, so this gradient is only rounding, far below the
        # other.
        noise = tolerance * float(first[name].abs().max())
        assert float((second[name].cpu() - wanted).abs().max()) < max(
            noise, tolerance * float(wanted.abs().max())
        ), name
    replay.method.backward(batch, generator(replay.run))
    for name, wanted in replay.recorded("step0/grad_final").items():
        ours = replay.method.trainable()[name].grad
        assert ours is not None
        close = (ours.cpu() - wanted).abs() < tolerance * wanted.abs().max()
        # An element whose gradients are both only rounding may be dropped on one side.
        assert float(close.double().mean()) > 0.9999, name


def test_training(replay: Replay, device: str) -> None:
    method, rng = replay.method, generator(replay.run)
    optimiser = make_optimiser(method.trainable().values(), replay.optim)
    loss_tolerance, logit_tolerance = (5e-6, 1e-4) if device == "cpu" else (1e-3, 1e-2)
    for step, (rate, batch) in enumerate(replay.batches()):
        if step < EARLY:
            with torch.no_grad():
                logits = method(batch.inputs).cpu().numpy()
            np.testing.assert_allclose(
                logits, replay.trace["train_logits"][step], atol=logit_tolerance, rtol=0
            )
        scalars = method.backward(batch, rng)
        if step < EARLY:
            for ours, theirs in (("train/loss", "loss"), ("train/kl", "kl")):
                if ours in scalars:
                    wanted = float(replay.trace[theirs][step])
                    assert scalars[ours] == pytest.approx(wanted, abs=loss_tolerance), (step, ours)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
    assert ("train/kl" in scalars) == (replay.run["leak"] > 0)
    check_end(replay, device)


def check_end(replay: Replay, device: str) -> None:
    """Masks, scores, sparsity and accuracy after the last step."""
    share = (0.995 if replay.kind == "resnet" else 0.998) if device == "cpu" else 0.99
    equal = total = 0
    for name, mask in replay.method.masks().items():
        packed = replay.trace[f"mask/{replay.names[name]}.mask_real"]
        bits = np.unpackbits(packed, count=mask.numel()).astype(bool)
        equal += int((bits.reshape(mask.shape) == mask.cpu().numpy()).sum())
        total += mask.numel()
    assert equal / total >= share
    for name, wanted in replay.recorded("mask_real").items():
        distance = (replay.method.trainable()[name].detach().cpu() - wanted).abs()
        travelled = (wanted - replay.run["init"]).abs().mean()
        assert float(distance.mean()) < 0.05 * float(travelled), name
    sparsity = 100 * replay.method.progress()["mask/sparsity"]
    assert sparsity == pytest.approx(float(replay.trace["sparsity"]), abs=100 * (1 - share))
    with torch.no_grad():
        correct = replay.method(replay.images["x_test"]).argmax(-1) == replay.images["y_test"]
    accuracy = float(correct.double().mean())
    assert accuracy == pytest.approx(replay.run["accuracy"], abs=1.5 / len(correct))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=runs("ramt.json"))
def replay(request: pytest.FixtureRequest, device: str) -> Replay:
    return Replay(request.param, device)
