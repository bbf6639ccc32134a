"""What most methods' artifacts have in common: tensors of known shapes, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainables.methods.base import Method, MethodError


class TensorArtifact(Method):
    """A method whose artifact is its tensors as they are, and whose backbone they belong to."""

    description: dict[str, str]
    """The artifact's metadata, see `described`."""

    def learned(self) -> dict[str, Tensor]:
        """The artifact's tensors by name, which `load_artifact` fills; by default what is
        trained."""
        return dict(self.trainable())

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See `Method.artifact`."""
        return detached(self.learned()), dict(self.description)

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """See `Method.load_artifact`; metadata and shapes must be those of this method."""
        check_metadata(metadata, self.description)
        own = self.learned()
        check_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in own.items()})
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def described(kind: str, backbone: str, version: int = 1) -> dict[str, str]:
    """The metadata of an artifact: its format (a method's registry name) and the fingerprint of
    the backbone that it belongs to."""
    return {"format": kind, "format_version": str(version), "backbone": backbone}


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, ready to be written."""
    return {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}


def check_metadata(metadata: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises `MethodError` where an artifact is another method's, version's or backbone's."""
    found = {key: metadata.get(key) for key in expected}
    if found != dict(expected):
        raise MethodError(
            f"the artifact's metadata must contain {dict(expected)}, got {dict(metadata)}: "
            "load it with the method and backbone it was trained with"
        )


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `MethodError` where tensors are missing, superfluous, of another shape or not finite.
    A side of -1 may have any length."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fits = found.keys() == shapes.keys() and all(
        len(found[name]) == len(shape)
        and all(wanted in (-1, side) for side, wanted in zip(found[name], shape, strict=True))
        for name, shape in shapes.items()
    )
    if not fits or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise MethodError(
            f"the artifact must hold finite tensors of shapes {dict(shapes)}, got {found}: "
            "load it with the configuration and the classes it was trained with"
        )
