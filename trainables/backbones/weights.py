"""Reading weight files without running anything they contain."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.backbones.archive import check_zip, is_torchscript, read_torchscript
from trainables.backbones.base import BackboneError

OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the weights."""
_NPZ_RATIO = 20.0
"""Most times its own size that a compressed .npz file may unpack to."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Entries of a training checkpoint that hold the state dict."""
_WRAPPER_MODULES = frozenset({"module", "_orig_mod"})
"""Path components that DistributedDataParallel and torch.compile add to names."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one file."""

    tensors: dict[str, Tensor]
    """By name, on the CPU, in the file's own number types."""
    openai: bool
    """Whether the file shows that OpenAI made it: a TorchScript archive, or its marks."""


def read_weights(path: Path) -> Weights:
    """Read a state dict from .safetensors, .pt, .pth, .bin, .ckpt or .npz.

    Training checkpoints are unwrapped: a state dict below `state_dict` or `model`, names with
    `module.`, `_orig_mod.` or one common prefix. Raises `BackboneError` for everything that is not
    a finite state dict.
    """
    if path.suffix not in _READERS:
        known = ", ".join(_READERS)
        raise BackboneError(
            f"a weights file ends in {known}, got {path.name!r}: rename or convert it"
        )
    if not path.is_file():
        raise BackboneError(f"a weights file must exist, got {str(path)!r}: check the path")
    archive = path.suffix in _TORCH_SUFFIXES and is_torchscript(path)
    try:
        content = read_torchscript(path) if archive else _READERS[path.suffix](path)
    except Exception as error:  # each parser fails in its own ways on damage
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise BackboneError(
            f"a weights file must be readable without running code, got {str(path)!r} "
            f"({path.stat().st_size} bytes; {reason}): download it again or, if you trust it, save "
            "its state dict alone: safetensors.torch.save_file(state_dict, 'weights.safetensors')"
        ) from error
    tensors = _state_dict(content, path)
    marks = [tensors.pop(name, None) for name in OPENAI_MARKS]
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise BackboneError(
            f"weights must be finite, got NaN or infinity in {bad[0]!r} of {str(path)!r}: "
            "download the file again"
        )
    return Weights(tensors, archive or any(mark is not None for mark in marks))


def read_torch(path: Path) -> object:
    """Read what `torch.save` wrote, tensors and plain containers only; raises in many ways."""
    if zipfile.is_zipfile(path):
        check_zip(path)
    with warnings.catch_warnings(action="ignore"):  # about old pickles
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whose text may advise to run the file's code
            if "weights_only" not in str(error):
                raise
            cause = re.search(r"(?:WeightsUnpickler error:|Trying to load)\s*(.+)", str(error))
            raise ValueError(cause[1] if cause else "it contains more than tensors") from None


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `model`, name by name and shape by shape; raises `BackboneError`."""
    own = model.state_dict()
    given = dict(tensors)
    for name in ("logit_scale", "logit_bias"):  # stored as [] or [1]
        if name in own and name in given and given[name].numel() == 1:
            given[name] = given[name].reshape(own[name].shape)
    for name, tensor in own.items():  # a counter that older files lack and evaluation ignores
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, tensor)
    faults = [f"missing {name}" for name in own if name not in given]
    faults += [f"superfluous {name}" for name in given if name not in own]
    faults += [
        f"{name} of shape {list(given[name].shape)} in place of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BackboneError(
            f"the weights must fit the architecture, but {source} has {'; '.join(faults[:3])}"
            f"{more}: name the architecture that the file was trained with"
        )
    model.load_state_dict(given)


def is_half_precision(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating-point weight is a float16 number."""
    floats = (t for t in tensors.values() if t.is_floating_point())
    return all(torch.equal(t.half().to(t.dtype), t) for t in floats)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(tensors: Mapping[str, Tensor], header: bytes) -> str:
    """Hex SHA-256 over `header` and every tensor's name, type, shape and bytes, by name."""
    total = hashlib.sha256(len(header).to_bytes(8, "big") + header)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _read_npz(path: Path) -> object:
    check_zip(path, _NPZ_RATIO)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}


_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": load_file,
    **dict.fromkeys(_TORCH_SUFFIXES, read_torch),
    ".npz": _read_npz,
}


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The name -> tensor mapping in a file's content, without wrappers."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise BackboneError(
            f"a weights file must hold a state dict (names with tensors), {str(path)!r} does not: "
            "save model.state_dict()"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if path.suffix in _TORCH_SUFFIXES and size > 4 * path.stat().st_size:
        raise BackboneError(
            f"tensors must be stored in full, but those of {str(path)!r} claim {size} bytes, more "
            "than the file has: save model.state_dict()"
        )
    names = {
        name: ".".join(part for part in name.split(".") if part not in _WRAPPER_MODULES)
        for name in content
    }
    prefix = _common_prefix(names.values())
    return {names[name].removeprefix(prefix): tensor for name, tensor in content.items()}


def _common_prefix(names: Collection[str]) -> str:
    """What stands before all names of a model that is an attribute of another, e.g. of a
    Lightning module: whatever precedes its `logit_scale`."""
    owners = [name.removesuffix("logit_scale") for name in names if name.endswith("logit_scale")]
    if len(owners) == 1 and all(name.startswith(owners[0]) for name in names):
        return owners[0]
    return ""
