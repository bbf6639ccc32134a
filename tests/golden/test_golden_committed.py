"""The part of the traces that is small enough for the repository; see data/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone, Preprocess
from trainables.core.optim import OptimConfig, make_optimiser
from trainables.methods.base import Batch, BuildContext, ClassTexts, Schedule
from trainables.methods.gradient_rules import keep
from trainables.methods.taskres import TaskRes, TaskResConfig


@pytest.fixture(scope="module")
def traces() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "data" / "traces.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


@pytest.mark.parametrize(("run", "leak"), [("ramt", 0.3), ("ramt_l1", 1.0)])
def test_gradient_dropout(traces: dict[str, Tensor], run: str, leak: float) -> None:
    first, second = traces[f"{run}/grad_ce"], traces[f"{run}/grad_kl"]
    kept = keep(first, second, traces[f"{run}/uniform"], eps=1e-8)
    final = ((1 - leak) + leak * kept) * first
    torch.testing.assert_close(final, traces[f"{run}/grad_final"], atol=0, rtol=1e-6)


def test_taskres_run(traces: dict[str, Tensor]) -> None:
    recorded = {k.removeprefix("taskres/"): v for k, v in traces.items() if "taskres/" in k}
    optim = OptimConfig(2e-3, 8, 16, weight_decay=5e-4, warmup_epochs=1)
    np.testing.assert_allclose([optim.lr_at(e) for e in range(8)], recorded["lrs"], rtol=1e-12)
    method = TaskRes.build(
        TaskResConfig(prompts="reference", alpha=1.0),
        BuildContext(
            scaled(float(recorded["logit_scale"])),
            ClassTexts(recorded["base"]),
            Schedule(optim.learning_rates(40)),
        ),
    )
    optimiser = make_optimiser(method.trainable().values(), optim)
    losses = []
    for epoch, order in enumerate(recorded["order"]):
        optimiser.param_groups[0]["lr"] = optim.lr_at(epoch)
        for rows in (order[:16], order[16:32]):
            batch = Batch(recorded["x_train"][rows], recorded["y_train"][rows])
            losses.append(method.backward(batch, torch.Generator())["train/loss"])
            optimiser.step()
    np.testing.assert_allclose(losses, recorded["loss"], atol=1e-4)
    torch.testing.assert_close(
        method.residual.detach(), recorded["residual"], atol=1e-4, rtol=0, check_dtype=False
    )
    with torch.no_grad():
        logits = method(recorded["x_test"])
    torch.testing.assert_close(logits, recorded["eval_logits"], atol=1e-4, rtol=0)


def scaled(scale: float) -> Backbone:
    """The parts of a backbone that TaskRes uses."""
    model = nn.Module()
    model.logit_scale = nn.Parameter(torch.tensor(scale).log(), requires_grad=False)
    transform = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Backbone("recorded", model, lambda texts: torch.zeros(len(texts)), transform, "", "")
