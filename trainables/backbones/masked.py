"""A backbone with masks folded in that somebody has learned: `FILE.safetensors@BACKBONE`, or
`FILE.pth.tar@BACKBONE` for those of R-AMT's released code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from trainables.backbones.base import Backbone, BackboneError
from trainables.methods.base import MethodError
from trainables.methods.masking.layers import maskable
from trainables.methods.masking.masks import FORMAT, read_released_masks, unpack_masks
from trainables.storage import LocalStorage, StorageError
from trainables.tensor_file import read_tensors

_MASKED = re.compile(r"(.*?\.(?:safetensors|pth\.tar(?:-\d+)?|pth|pt))@(.*)", re.DOTALL)

_Masks = tuple[str, dict[str, Tensor]]
"""What stands before the names of the masked weights in the model, and masks by these names."""


def split_masked(spec: str) -> tuple[str, str] | None:
    """The masks' path and the backbone's specification; none where there are no masks."""
    found = _MASKED.fullmatch(spec)
    return (found[1], found[2]) if found else None


def mask_backbone(backbone: Backbone, path: Path) -> Backbone:
    """`backbone` with W B in place of W, where `path` is an artifact of mask tuning on it, or a
    checkpoint of R-AMT's code. Raises `BackboneError`."""
    if not path.is_file():
        raise BackboneError(
            f"what stands before '@' must be a mask artifact, and '{path}' does not exist: check "
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
    """Those that a trial has left."""
    try:
        content = read_tensors(LocalStorage(path.parent), path.name)
    except StorageError as error:
        raise BackboneError(f"what stands before '@' must be readable: {error}") from error
    if content is None:
        raise BackboneError(
            f"what stands before '@' must be a mask artifact, and '{path}' is damaged: copy it "
            "again"
        )
    tensors, metadata = content
    if metadata.get("format") != FORMAT:
        raise BackboneError(
            f"what stands before '@' must be a mask artifact, and '{path}' has the format "
            f"{metadata.get('format', 'of something else')!r}: only masks can be folded into a "
            "backbone without more; to go on from another method's winner, use --init-from"
        )
    # The image tower's there were alone before there were others.
    return metadata.get("prefix", "visual."), unpack_masks(tensors, metadata, backbone.fingerprint)


def _released(backbone: Backbone, path: Path) -> _Masks:
    """Those of R-AMT's code, on the image tower: which layers, their names say. Which weights they
    were trained on the file does not, so that only shapes are compared."""
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
