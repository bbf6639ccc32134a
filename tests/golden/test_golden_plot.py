"""PLOT++ against the authors' code, from features to gradients; see data/README.md.

That code ends Sinkhorn's iterations at a mean change of 0.01, so its plans are exact to that."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.golden.golden_traces import relative
from tests.trainables.methods.named_classes import context
from trainables.load_backbone import load_backbone
from trainables.methods.base import Batch
from trainables.methods.plot import Plot, PlotConfig, transport_plan


@pytest.fixture(scope="module")
def plot_trace() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "data" / "traces.npz", allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith("plot/")]
        return {name[5:]: torch.from_numpy(np.array(file[name])) for name in names}


def test_the_plan(plot_trace: dict[str, Tensor]) -> None:
    image, text = (functional.normalize(plot_trace[kind], dim=-1) for kind in ("image", "text"))
    plan = transport_plan(torch.einsum("mbd,ncd->bcmn", image, text), 0.1)
    torch.testing.assert_close(plan, plot_trace["plan"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("half", ["first", "joint"])
def test_loss_and_gradients(
    plot_trace: dict[str, Tensor],
    half: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of either half of a training; the towers give the recorded features."""
    config = PlotConfig(image_share=0.5 * (half == "first"))
    method = Plot.build(config, context(load_backbone("tiny")))
    method.scale.fill_(100)
    image, text = (plot_trace[kind].clone().requires_grad_() for kind in ("image", "text"))
    monkeypatch.setattr(method, "_images", lambda inputs: image)
    monkeypatch.setattr(method, "_texts", lambda prompts: text)
    batch = Batch(torch.empty(0), plot_trace["labels"])
    loss = method.losses(batch, torch.Generator())["train/loss"]
    loss.backward()
    assert loss.item() == pytest.approx(plot_trace[f"{half}_loss"].item(), abs=2e-3)
    assert relative(image.grad, plot_trace[f"{half}_grad_image"]) < 1e-2
    if half == "joint":
        assert relative(text.grad, plot_trace["joint_grad_text"]) < 1e-2
        logits = method(torch.empty(0))
        torch.testing.assert_close(logits, plot_trace["joint_logits"], atol=1e-2, rtol=0)
