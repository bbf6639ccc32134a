"""A small sweep on a GPU: `python -m pytest -m gpu`."""

from __future__ import annotations

import json

import pytest
import torch

from tests.search.conftest import Sweep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("space", ["rmt", "taskres"])
def test_a_sweep_uses_the_gpu_by_itself(sweep: Sweep, space: str) -> None:
    options = ("--shots", "4", "--trials", "3", "--eval-seeds", "1", "--tracking-uri", "none")
    done = sweep.run_alone("--space", space, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 at a time on the GPU" in done.stdout
    assert {r["state"] for r in sweep.results().values()} <= {"COMPLETE", "PRUNED"}
    assert len(json.loads((sweep.folder / "evaluation.json").read_text())["scores"]) == 3


def test_fractions_share_a_card(sweep: Sweep) -> None:
    options = ("--shots", "4", "--trials", "4", "--eval-seeds", "1", "--tracking-uri", "none")
    done = sweep.run_alone("--space", "taskres", "--gpus-per-trial", "0.5", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 at a time on the GPU" in done.stdout
