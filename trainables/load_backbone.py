"""Backbones by specification, with learned masks folded in if it names any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.layout import split_masks
from trainables.backbones.registry import open_backbone
from trainables.core.storage import LocalStorage, StorageError
from trainables.core.tensor_file import read_tensors
from trainables.methods.base import MethodError
from trainables.methods.masking.layers import maskable
from trainables.methods.masking.masks import FORMAT, read_released_masks, unpack_masks

_Masks = tuple[str, dict[str, Tensor]]
"""The prefix of the masked weights' names in the model, and masks by the names after it."""


def load_backbone(spec: str, device: torch.device | str = "cpu") -> Backbone:
    """The backbone `spec` on `device`; raises `BackboneError`.

    `spec` is that of `registry.open_backbone`, or `FILE.safetensors@SPEC` (with the masks of an
    artifact that was trained on SPEC), or `FILE.pth.tar@SPEC` (.pth, .pt; with the masks of a
    checkpoint of R-AMT's released code).
    """
    if masked := split_masks(spec):
        return mask_backbone(load_backbone(masked[1], device), Path(masked[0]))
    return open_backbone(spec, device)


def mask_backbone(backbone: Backbone, path: Path) -> Backbone:
    """`backbone` with weights W B in place of W for the masks B in `path`, an artifact of mask
    tuning on it or a checkpoint of R-AMT's code. Raises `BackboneError`."""
    if not path.is_file():
        raise BackboneError(
            f"the file before '@' must be a mask artifact, and '{path}' does not exist: check "
            "the path"
        )
    try:
        read = _artifact if path.suffix == ".safetensors" else _released
        prefix, masks = read(backbone, path)
        whole = {name: backbone.model.get_parameter(prefix + name) for name in masks}
        weights = {
            f"{prefix}{name}": whole[name] * mask.to(backbone.device)
            for name, mask in masks.items()
        }
        return replace(backbone.changed(weights), name=f"{path}@{backbone.name}")
    except (MethodError, AttributeError, RuntimeError) as error:
        raise BackboneError(f"'{path}' on '{backbone.name}': {error}") from error


def _artifact(backbone: Backbone, path: Path) -> _Masks:
    """Masks that a trial has learned."""
    try:
        content = read_tensors(LocalStorage(path.parent), path.name)
    except StorageError as error:
        raise BackboneError(f"the file before '@' must be readable: {error}") from error
    if content is None:
        raise BackboneError(
            f"the file before '@' must be a mask artifact, and '{path}' is damaged: copy it again"
        )
    tensors, metadata = content
    if metadata.get("format") != FORMAT:
        raise BackboneError(
            f"the file before '@' must be a mask artifact, and '{path}' has the format "
            f"{metadata.get('format', 'of something else')!r}: only masks can be folded into a "
            "backbone without more; to go on from another method's winner, use --init-from"
        )
    # Older artifacts have none: their masks were all of the image tower.
    return metadata.get("prefix", "visual."), unpack_masks(tensors, metadata, backbone.fingerprint)


def _released(backbone: Backbone, path: Path) -> _Masks:
    """Masks of R-AMT's code, for the image tower. Names give the layers; the file does not record
    which weights they were trained on, so only shapes are compared."""
    tower = backbone.visual
    groups = maskable(tower)
    shapes = {name: tuple(tower.get_parameter(name).shape) for name in groups}
    masks = read_released_masks(path, shapes)
    wanted = {groups[name] for name in masks}
    if missing := [n for n, group in groups.items() if group in wanted and n not in masks]:
        raise MethodError(
            f"masks must be of all layers of a kind, and there is none of {', '.join(missing[:3])}:"
            " load the backbone that they were trained on"
        )
    return "visual.", masks
