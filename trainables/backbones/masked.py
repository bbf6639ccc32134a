"""A backbone with masks folded in that somebody has learned: `FILE.safetensors@BACKBONE`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainables.backbones.base import Backbone, BackboneError
from trainables.methods.base import MethodError
from trainables.methods.masks import FORMAT, unpack_masks
from trainables.storage import LocalStorage, StorageError
from trainables.tensor_file import read_tensors

_MARK = ".safetensors@"


def split_masked(spec: str) -> tuple[str, str] | None:
    """The artifact's path and the backbone's specification; none where there is no artifact."""
    head, mark, backbone = spec.partition(_MARK)
    return (f"{head}{_MARK[:-1]}", backbone) if mark else None


def mask_backbone(backbone: Backbone, path: Path) -> Backbone:
    """`backbone` with W B in place of W, where `path` is an artifact of mask tuning on it. Raises
    `BackboneError`."""
    try:
        content = read_tensors(LocalStorage(path.parent), path.name)
    except StorageError as error:
        raise BackboneError(f"what stands before '@' must be readable: {error}") from error
    if content is None:
        why = "is damaged: copy it again" if path.is_file() else "does not exist: check the path"
        raise BackboneError(f"what stands before '@' must be a mask artifact, and '{path}' {why}")
    tensors, metadata = content
    if metadata.get("format") != FORMAT:
        raise BackboneError(
            f"what stands before '@' must be a mask artifact, and '{path}' has the format "
            f"{metadata.get('format', 'of something else')!r}: only masks can be folded into a "
            "backbone without more; to go on from another method's winner, use --start"
        )
    try:
        masks = unpack_masks(tensors, metadata, backbone.fingerprint)
        prefix = metadata.get("prefix", "visual.")  # which there was alone before there was another
        whole = {name: backbone.model.get_parameter(prefix + name) for name in masks}
        weights = {
            f"{prefix}{name}": whole[name] * mask.to(backbone.device)
            for name, mask in masks.items()
        }
        return replace(backbone.changed(weights), name=f"{path}@{backbone.name}")
    except (MethodError, AttributeError, RuntimeError) as error:
        raise BackboneError(f"'{path}' on '{backbone.name}': {error}") from error
