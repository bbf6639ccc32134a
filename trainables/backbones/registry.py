"""Backbones by name or specification."""

from __future__ import annotations

from pathlib import Path

import torch

from trainables.backbones.base import Backbone
from trainables.backbones.bundle import open_bundle_backbone
from trainables.backbones.masked import mask_backbone, split_masked
from trainables.data.bundle import PREFIX

BACKBONES: dict[str, Path] = {
    "tiny": Path(__file__).parent / "tiny",
}
"""Models that are part of this project: name -> folder in open_clip's layout."""


def absolute_spec(spec: str) -> str:
    """`spec` with the path in it made absolute: workers run in folders of their own."""
    if spec in BACKBONES:
        return spec
    if masked := split_masked(spec):
        return f"{Path(masked[0]).expanduser().resolve()}@{absolute_spec(masked[1])}"
    head, colon, rest = spec.partition(":")
    path = Path(rest if colon else spec).expanduser()
    if path.is_file() or (path.is_dir() and head in ("local-dir", spec)):
        return f"{head}:{path.resolve()}" if colon else str(path.resolve())
    return spec


def load_backbone(spec: str, device: torch.device | str = "cpu") -> Backbone:
    """The backbone `spec` on `device`: float32, in evaluation mode, without gradients.

    `spec` is a name in `BACKBONES`, or one of
    `ARCH` or `ARCH:TAG` (downloaded by open_clip; `ARCH` means `ARCH:openai`),
    `ARCH:FILE` (.safetensors, .pt, .pth, .bin), `ARCH-gelu:FILE` (plain GELU on purpose),
    `openai:FILE` (a state dict in OpenAI's layout, .npz too; dimensions inferred),
    `DIR` or `local-dir:DIR` (`open_clip_config.json` and `open_clip_model.safetensors`),
    `bundle:FILE` (features without a model, see `trainables/data/bundle.py`),
    `FILE.safetensors@SPEC` (any of these with the masks of an artifact that was trained on it),
    `FILE.pth.tar@SPEC` (.pth, .pt; the masks of a checkpoint of R-AMT's released code).

    Raises `BackboneError`.
    """
    if masked := split_masked(spec):
        return mask_backbone(load_backbone(masked[1], device), Path(masked[0]))
    if spec.startswith(PREFIX):
        return open_bundle_backbone(spec).to(device)
    # Here and not above: a process that builds no model shall not pay for open_clip's memory.
    from trainables.backbones.open_clip import open_folder, open_spec

    folder = BACKBONES.get(spec)
    backbone = open_folder(folder, spec) if folder is not None else open_spec(spec)
    return backbone.to(device)
