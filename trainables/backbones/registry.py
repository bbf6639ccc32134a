"""Backbones by specification."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from trainables.backbones.base import Backbone
from trainables.backbones.bundle import open_bundle_backbone
from trainables.backbones.layout import HUB, split_masks, split_path
from trainables.core.files import expanded
from trainables.data.bundle import PREFIX

BACKBONES: dict[str, Path] = {
    "tiny": Path(__file__).parent / "tiny",
}
"""Models that are part of this project: name -> folder in open_clip's layout."""


def absolute_spec(spec: str) -> str:
    """`spec` with absolute paths: workers run in other folders."""
    if spec in BACKBONES or spec.startswith(HUB):
        return spec
    if masked := split_masks(spec):
        return f"{_absolute(masked[0])}@{absolute_spec(masked[1])}"
    before, name = split_path(spec)
    path = expanded(name)
    if path.is_file() or (path.is_dir() and before in ("local-dir:", "")):
        return f"{before}{_absolute(name)}"
    return spec


def _absolute(path: str) -> str:
    """Links are kept: what the Hugging Face cache links to has names without suffixes."""
    return os.path.abspath(expanded(path))


def open_backbone(spec: str, device: torch.device | str = "cpu") -> Backbone:
    """The backbone `spec`, which names no masks, on `device`: float32, in evaluation mode,
    without gradients.

    `spec` is a name in `BACKBONES`, or one of
    `ARCH` or `ARCH:TAG` (downloaded by open_clip; `ARCH` means `ARCH:openai`),
    `ARCH:FILE` (.safetensors, .pt, .pth, .bin, .ckpt), `ARCH-gelu:FILE` (plain GELU on purpose),
    `ARCH:TAG@FILE` (a file with the activation and preprocessing of published weights),
    `openai:FILE` (a state dict in OpenAI's layout, .npz too; dimensions inferred),
    `DIR` or `local-dir:DIR` (a model folder), `hf-hub:OWNER/NAME` (one of the Hugging Face hub),
    `bundle:FILE` (features without a model, see `trainables/data/bundle.py`).

    Raises `BackboneError`.
    """
    if spec.startswith(PREFIX):
        return open_bundle_backbone(spec).to(device)
    # Here and not above: open_clip's memory is for processes that build a model.
    from trainables.backbones.specs import open_folder, open_spec

    folder = BACKBONES.get(spec)
    return (open_folder(folder, spec, True) if folder else open_spec(spec)).to(device)
