"""Reading files of weights without running anything that they contain."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.backbones.base import BackboneError

OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the weights."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one file."""

    tensors: dict[str, Tensor]
    """By name, on the CPU, in the file's own number types."""
    openai: bool
    """Whether the file shows that OpenAI made it: a TorchScript archive, or its marks."""


def read_weights(path: Path) -> Weights:
    """Weights from .safetensors, .pt, .pth, .bin (never unpickling code) or .npz.

    Raises `BackboneError` for whatever is not a finite state dict.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        known = ", ".join(_READERS)
        raise BackboneError(f"a weights file ends in {known}, got {path.name!r}: rename or convert")
    if not path.is_file():
        raise BackboneError(f"a weights file must exist, got {str(path)!r}: check the path")
    archive = _is_torchscript(path)
    try:
        content = _read_torchscript(path) if archive else reader(path)
    except Exception as error:  # each parser fails in its own ways on damage
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BackboneError(
            f"a weights file must be readable without running code, got {str(path)!r} "
            f"({path.stat().st_size} bytes; {reason}): download it again, or save a plain state "
            "dict as .safetensors"
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


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `model`, name by name and shape by shape; raises `BackboneError`."""
    own = model.state_dict()
    given = dict(tensors)
    scale = given.get("logit_scale")
    if scale is not None and scale.numel() == 1:  # stored as [] or [1]
        given["logit_scale"] = scale.reshape(own["logit_scale"].shape)
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
    """Whether every floating-point weight survives a passage through float16 unchanged."""
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


def _read_torch(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_npz(path: Path) -> object:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}


_READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": load_file,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
    ".npz": _read_npz,
}


def _is_torchscript(path: Path) -> bool:
    if path.suffix not in (".pt", ".pth", ".bin") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def _read_torchscript(path: Path) -> object:
    # OpenAI's releases. The archive is parsed, its code is never called.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the format is being retired; these files stay
        module: Any = torch.jit.load(str(path), map_location="cpu")
    return dict(module.state_dict())


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The name -> tensor mapping in a file's content, training checkpoints unwrapped."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise BackboneError(
            f"a weights file must hold a state dict (names with tensors), {str(path)!r} does not: "
            "save model.state_dict()"
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
