"""What the papers' tables report about a trained model besides its accuracy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from search.reporting.learned import dropped_iou
from search.reporting.measures import (
    against_zero_shot,
    artifact_measures,
    layer_measures,
    masks_of,
    transfer_difficulty,
)
from trainables.methods.masking.masks import pack_masks

NAMES = {
    "conv1.weight": "first convolution",
    "layer1.0.conv1.weight": "other convolutions",
    "transformer.resblocks.0.attn.in_proj_weight": "attention",
    "transformer.resblocks.0.attn.out_proj.weight": "attention",
    "transformer.resblocks.0.mlp.c_fc.weight": "MLP",
    "attnpool.q_proj.weight": "attention",
}


def masks(*dropped: int, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """An artifact with 8 bits per name, of which so many are dropped."""
    bits = {prefix + n: torch.arange(8) >= d for n, d in zip(NAMES, dropped, strict=False)}
    tensors, metadata = pack_masks(bits, "backbone")
    change = {name: float(place) for place, name in enumerate(bits)}
    return tensors, metadata | {"score_change": json.dumps(change)}


def residual(x: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    return {"residual": x, "alpha": torch.tensor(0.5)}, {"format": "taskres"}


def test_masks() -> None:
    found = artifact_measures(*masks(1, 0, 2, 0, 5, 0))
    assert found["sparsity"] == pytest.approx(100 * 8 / 48)
    assert found["parameters"] == pytest.approx(48e-6)
    assert found["size"] == pytest.approx(6 / 2**20)  # a byte for each of the six masks
    assert "residual-mean" not in found


def test_a_residual() -> None:
    found = artifact_measures(*residual(torch.tensor([[1.0, -2.0], [-4.0, 9.0]])))
    assert found["residual-mean"] == 4
    assert found["residual-median"] == 3
    assert found["parameters"] == pytest.approx(5e-6)
    assert "sparsity" not in found


def test_the_stages_of_a_pipeline_are_added() -> None:
    stages = [masks(4), residual(torch.ones(2, 3))]
    tensors = {f"{i}/{k}": t for i, (own, _) in enumerate(stages) for k, t in own.items()}
    metadata = {"format": "pipeline", "stages": json.dumps([record for _, record in stages])}
    found = artifact_measures(tensors, metadata)
    assert (found["sparsity"], found["residual-mean"]) == (50, 1)
    assert found["parameters"] == pytest.approx((8 + 7) * 1e-6)
    assert set(masks_of(tensors, metadata)) == {"conv1.weight"}


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_layers(prefix: str) -> None:
    """Of the image tower alone, and of both, whose names have a prefix."""
    found = layer_measures(*masks(1, 0, 2, 0, 8, 1, prefix=prefix))
    assert set(found) == set(NAMES.values())
    assert found["attention"]["layer-sparsity"] == pytest.approx(100 * 3 / 24)
    assert found["attention"]["layer-change"] == pytest.approx((2 + 3 + 5) / 3)
    assert found["MLP"] == {"layer-sparsity": 100, "layer-change": 4}
    assert found["first convolution"]["layer-sparsity"] == pytest.approx(12.5)
    assert layer_measures(*residual(torch.ones(1, 1))) == {}


def test_masks_of_two_draws_overlap() -> None:
    first, second = (masks_of(*masks(dropped)) for dropped in (2, 4))
    assert dropped_iou(first, second) == 0.5


def test_predictions_against_the_zero_shot_model() -> None:
    truth = np.array([0, 1, 2, 0, 1], np.uint16)
    zero_shot = np.array([0, 1, 0, 1, 0], np.uint16)
    trained = np.array([0, 2, 2, 0, 0], np.uint16)
    found = against_zero_shot(truth, zero_shot, trained)
    assert (found["wrong-to-right"], found["right-to-wrong"]) == (2, 1)
    assert found["gain"] == pytest.approx(20)


def test_transfer_difficulty_is_chance_over_zero_shot_accuracy() -> None:
    assert transfer_difficulty(10, 0.3752) == pytest.approx(0.2665, abs=1e-4)
    assert transfer_difficulty(10, 0.0) is None
