"""TaskRes against the authors' code: base, every learning rate, every loss, the result."""

import numpy as np
import pytest
import torch
from golden_traces import DEVICES, backbone, images, index, runs, taskres_prompts, trace

from trainables.core.optim import OptimConfig, make_optimiser
from trainables.data.prompts import class_features
from trainables.methods.base import Batch, BuildContext, ClassTexts, Schedule
from trainables.methods.taskres import TaskRes, TaskResConfig


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", runs("taskres.json"))
def test_training(name: str, device: str) -> None:
    run, recorded, kind = index("taskres.json")[name], trace(name), name.split("_")[1]
    model, data = backbone(kind, device), images(kind, device)
    tolerance = 1e-4 if device == "cpu" else 1e-3
    wanted = torch.from_numpy(recorded["base"]).to(device)
    bases = [class_features(model, prompts) for prompts in taskres_prompts(name, run)]
    base = min(bases, key=lambda candidate: float((candidate - wanted).abs().max()))
    torch.testing.assert_close(base, wanted, atol=3e-5 if device == "cpu" else 1e-3, rtol=1e-5)

    optim = OptimConfig(
        lr=run["lr"],
        epochs=run["epochs"],
        batch_size=run["batch_size"],
        weight_decay=run["weight_decay"],
        warmup_epochs=run.get("warmup_epochs", 1),
        warmup_lr=run["warmup_lr"],
    )
    rates = [optim.lr_at(epoch) for epoch in range(optim.epochs)]
    np.testing.assert_allclose(rates, recorded["lrs"], rtol=1e-12)

    config = TaskResConfig(prompts="reference", alpha=run["alpha"])
    schedule = Schedule(optim.learning_rates(len(data["x_train"])))
    method = TaskRes.build(config, BuildContext(model, ClassTexts(base), schedule))
    features = model.encode_image(data["x_train"])
    optimiser = make_optimiser(method.trainable().values(), optim)
    losses = []
    for rate, order in zip(rates, torch.from_numpy(recorded["order"]).to(device), strict=True):
        optimiser.param_groups[0]["lr"] = rate
        for step in range(optim.steps_per_epoch(len(order))):
            rows = order[step * optim.batch_size : (step + 1) * optim.batch_size]
            batch = Batch(features[rows], data["y_train"][rows])
            losses.append(method.backward(batch, torch.Generator())["train/loss"])
            optimiser.step()
    np.testing.assert_allclose(losses, recorded["loss"], atol=tolerance)

    residual = method.trainable()["residual"].detach().cpu().numpy()
    np.testing.assert_allclose(residual, recorded["residual"], atol=tolerance)
    with torch.no_grad():
        logits = method(model.encode_image(data["x_test"]))
    np.testing.assert_allclose(logits.cpu().numpy(), recorded["eval_logits"], atol=tolerance)
    accuracy = float((logits.argmax(-1) == data["y_test"]).double().mean())
    assert accuracy == pytest.approx(run["accuracy"], abs=1e-6 if device == "cpu" else 0.04)
