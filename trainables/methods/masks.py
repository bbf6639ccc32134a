"""Binary masks: their file format, and the gradient purity that decides how they learn."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trainables.methods.base import MethodError

FORMAT = "binary-mask"
FORMAT_VERSION = 1
BIT_ORDER = "msb-first"


def purity(first: Tensor, second: Tensor, eps: float = 0.0) -> Tensor:
    """P = (1 + sgn(a) (a + b) / (|a| + |b| + eps)) / 2 in [0, 1] (R-AMT's gradient purity).

    With eps = 0 it equals 1 where a b > 0, else |a| / (|a| + |b|). 0/0, two gradients that vanish,
    counts as agreement: P = 1.
    """
    ratio = (first + second) / (first.abs() + second.abs() + eps)
    return torch.nan_to_num_(ratio.mul_(first.sign()).add_(1).div_(2), nan=1.0)


def keep(first: Tensor, second: Tensor, uniform: Tensor, eps: float = 0.0) -> Tensor:
    """Bool tensor [P > U]: which elements of `first` survive R-AMT's gradient dropout."""
    return purity(first, second, eps) > uniform


def pack_bits(mask: Tensor) -> Tensor:
    """Bool tensor of any shape -> uint8 [ceil(n / 8)].

    Row-major, most significant bit first, the last byte padded with zeros.
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`; the length must fit (`ValueError`)."""
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (-(-count // 8),):
        raise ValueError(
            f"{count} bits need uint8 [{-(-count // 8)}], got {packed.dtype} {list(packed.shape)}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(bits).reshape(shape)


def pack_masks(
    masks: Mapping[str, Tensor], backbone: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Masks by tensor name -> packed tensors and metadata for one safetensors file.

    `backbone` is the fingerprint of the weights that the masks belong to.
    """
    packed = {name: pack_bits(mask) for name, mask in masks.items()}
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    return packed, {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "bit_order": BIT_ORDER,
        "shapes": json.dumps(shapes, sort_keys=True),
        "backbone": backbone,
        "checksum": _checksum(packed, shapes, backbone),
    }


def unpack_masks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], backbone: str
) -> dict[str, Tensor]:
    """The inverse of `pack_masks`; raises `MethodError` for anything that it did not write."""
    if metadata.get("format") != FORMAT:
        raise MethodError(
            f"a mask file has format {FORMAT!r}, got {metadata.get('format')!r}: "
            "was it written by another method?"
        )
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) != FORMAT_VERSION:
        raise MethodError(
            f"mask files up to version {FORMAT_VERSION} can be read, got {version!r}: "
            "update this program"
        )
    if metadata.get("bit_order") != BIT_ORDER:
        raise MethodError(f"bits must be {BIT_ORDER}, got {metadata.get('bit_order')!r}")
    if metadata.get("backbone") != backbone:
        raise MethodError(
            f"the masks belong to the backbone {str(metadata.get('backbone'))[:12]}, this is "
            f"{backbone[:12]}: load the backbone that they were trained on"
        )
    shapes = _shapes(metadata)
    if set(shapes) != set(tensors):
        raise MethodError(
            f"tensors and header must name the same masks, but differ in "
            f"{sorted(set(shapes) ^ set(tensors))}: the file is damaged, train or copy it again"
        )
    try:
        masks = {name: unpack_bits(tensors[name], shape) for name, shape in shapes.items()}
    except ValueError as error:
        raise MethodError(f"the mask file is damaged ({error}): copy it again") from None
    if metadata.get("checksum") != _checksum(tensors, shapes, backbone):
        raise MethodError("the mask file's checksum does not fit its bits: copy it again")
    return masks


def _shapes(metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    try:
        shapes = json.loads(metadata["shapes"])
        return {str(name): tuple(int(n) for n in shape) for name, shape in shapes.items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise MethodError(
            f"the mask file's shapes are unreadable ({error!r}): copy it again"
        ) from None


def _checksum(
    packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], backbone: str
) -> str:
    digest = hashlib.sha256(json.dumps([backbone, shapes], sort_keys=True).encode())
    for name in sorted(packed):
        digest.update(packed[name].cpu().numpy().tobytes())
    return digest.hexdigest()
