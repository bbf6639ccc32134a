"""Miniature feature bundles."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NAMES = ["red_fox", "owl", "newt"]
METADATA = {"class_names": json.dumps(NAMES), "backbone": "ViT-X", "logit_scale": "50.0"}


def tensors(classes: int = 3, dimension: int = 6) -> dict[str, Tensor]:
    """Four training, five validation and two test rows per class, near their class's vector."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.eye(classes, dimension)
    found = {"class_features": 3 * vectors}
    for split, rows in (("train", 4), ("val", 5), ("test", 2)):
        labels = torch.arange(classes).repeat(rows)
        noise = 0.1 * torch.randn(len(labels), dimension, generator=rng)
        found[f"{split}_features"] = (vectors[labels] + noise).half()
        found[f"{split}_labels"] = labels
    return found


def write_bundle(
    path: Path, found: dict[str, Tensor], metadata: dict[str, str] | None = METADATA
) -> Path:
    """The file `path`."""
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, path, metadata)
    return path
