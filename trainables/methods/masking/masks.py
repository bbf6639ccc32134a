"""Binary masks on disk: the project's format, and that of R-AMT's released code.

Format version 2: one uint8 tensor per mask, of packed bits or, if that is smaller, of their zlib
stream. The metadata contains the format, shapes, backbone and a checksum of the bits. Version 1 had
no compression, which reduces sparse masks to a quarter.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.backbones.weights import read_torch
from trainables.methods.base import MethodError

FORMAT = "binary-mask"
FORMAT_VERSION = 2
BIT_ORDER = "msb-first"


def pack_bits(mask: Tensor) -> Tensor:
    """Bool tensor of any shape -> uint8 [ceil(n / 8)].

    Row-major, most significant bit first, the last byte padded with zeros.
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`; raises `ValueError` if the length does not match."""
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
    bits = {name: pack_bits(mask) for name, mask in masks.items()}
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    tensors = {name: _smallest(packed) for name, packed in bits.items()}
    zipped = sorted(name for name, tensor in tensors.items() if tensor is not bits[name])
    return tensors, {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "bit_order": BIT_ORDER,
        "shapes": json.dumps(shapes, sort_keys=True),
        "zlib": json.dumps(zipped),
        "backbone": backbone,
        "checksum": _checksum(bits, shapes, backbone),
    }


def unpack_masks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], backbone: str
) -> dict[str, Tensor]:
    """The inverse of `pack_masks`, also for version 1; raises `MethodError` for anything else."""
    if metadata.get("format") != FORMAT:
        raise MethodError(
            f"a mask file must have the format {FORMAT!r}, got {metadata.get('format')!r}: use "
            "the method that wrote it"
        )
    version = metadata.get("format_version", "")
    if not version.isdecimal() or not 1 <= int(version) <= FORMAT_VERSION:
        raise MethodError(
            f"a mask file must have a version up to {FORMAT_VERSION}, got {version!r}: "
            "update this program"
        )
    if metadata.get("bit_order") != BIT_ORDER:
        raise MethodError(f"bits must be {BIT_ORDER}, got {metadata.get('bit_order')!r}")
    if metadata.get("backbone") != backbone:
        raise MethodError(
            f"the masks must be of this backbone ({backbone[:12]}), got masks of "
            f"{str(metadata.get('backbone'))[:12]}: load the backbone that they were trained on"
        )
    shapes = _shapes(metadata)
    if set(shapes) != set(tensors):
        raise MethodError(
            f"tensors and header must name the same masks, but differ in "
            f"{sorted(set(shapes) ^ set(tensors))}: the file is damaged, copy it again"
        )
    try:
        zipped = set(json.loads(metadata["zlib"]) if int(version) > 1 else ())
        bits = {
            name: _unzip(tensors[name], shape) if name in zipped else tensors[name]
            for name, shape in shapes.items()
        }
        masks = {name: unpack_bits(bits[name], shape) for name, shape in shapes.items()}
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise MethodError(f"the mask file is damaged ({error}): copy it again") from None
    if metadata.get("checksum") != _checksum(bits, shapes, backbone):
        raise MethodError("the mask file's checksum does not match its bits: copy it again")
    return masks


def read_released_masks(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Masks from a checkpoint of R-AMT's released code, by the names of the weights they mask.

    `shapes`: name -> shape of all weights that could have a mask. In the checkpoint a mask is a
    Python byte string of packed bits under `<module path>.mask_real`, in the entry `state_dict` or
    in a state dict alone; the weight `x.weight` or `x.in_proj_weight` belongs to the module `x`. A
    common prefix of all module paths (`visual.`) is ignored. PyTorch's weights-only reader accepts
    byte strings in its default pickle protocol, 2, which that code writes; other protocols and
    other objects are refused. Raises `MethodError`.
    """
    try:
        content: Any = read_torch(path)
        state = content.get("state_dict", content)
        stored = {key: value for key, value in state.items() if isinstance(value, bytes)}
    except Exception as error:  # the reader refuses anything that might run code, in many ways
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise MethodError(
            f"{str(path)!r} must be a checkpoint of R-AMT's code that can be read without running "
            f"code, but is not ({why[:120]}): save only its state_dict, with torch.save and its "
            "default protocol"
        ) from None
    keys = {name: f"{name.rpartition('.')[0]}.mask_real" for name in shapes}
    before = _before_all(stored, set(keys.values()))
    masked = {name: f"{before}{key}" for name, key in keys.items() if f"{before}{key}" in stored}
    if not stored or (unknown := sorted(stored.keys() - masked.values())):
        found = f"those of {', '.join(unknown[:3])}" if stored else "none"
        raise MethodError(
            f"the masks in {str(path)!r} must be of layers of this backbone, got {found}: "
            "load the backbone that they were trained on"
        )
    try:
        return {
            name: unpack_bits(
                torch.from_numpy(np.frombuffer(stored[key], np.uint8).copy()), shapes[name]
            )
            for name, key in masked.items()
        }
    except ValueError as error:
        raise MethodError(
            f"the masks in {str(path)!r} must have the sizes of the backbone's weights ({error}): "
            "load the backbone that they were trained on"
        ) from None


def _before_all(stored: Collection[str], known: Collection[str]) -> str:
    """The prefix whose removal turns every stored name into a known one, e.g. `visual.`."""
    parts = min(stored, default="").split(".")
    for count in range(len(parts)):
        before = "".join(f"{part}." for part in parts[:count])
        if all(key.startswith(before) and key.removeprefix(before) in known for key in stored):
            return before
    return ""


def _smallest(packed: Tensor) -> Tensor:
    """The zlib stream of the bits, or the bits themselves if they are smaller."""
    stream = zlib.compress(packed.numpy().tobytes())
    if len(stream) >= packed.numel():
        return packed
    return torch.from_numpy(np.frombuffer(stream, np.uint8).copy())


def _unzip(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Reads no more bytes than `shape` needs; raises `ValueError` or `zlib.error`."""
    if tensor.dtype != torch.uint8:
        raise ValueError(f"a zlib stream is uint8, got {tensor.dtype}")
    reader = zlib.decompressobj()
    size = -(-math.prod(shape) // 8)
    content = reader.decompress(tensor.cpu().numpy().tobytes(), size + 1)
    if len(content) != size or not reader.eof or reader.unused_data:
        raise ValueError(f"a zlib stream must hold {size} bytes and end")
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


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
