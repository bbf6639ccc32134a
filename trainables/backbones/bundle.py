"""The backbone of a feature bundle: a temperature and a feature dimension.

Notation: c classes, d feature dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone, BackboneError, Preprocess
from trainables.backbones.weights import digest
from trainables.data.base import DataError
from trainables.data.bundle import PREFIX, Bundle, open_bundle


@dataclass(frozen=True)
class FeatureBackbone(Backbone):
    """A temperature and a feature dimension, without towers."""

    dimension: int
    """Length d of the features."""

    @property
    def visual(self) -> nn.Module:
        """Raises `BackboneError`: there is none."""
        _refuse(self.name)

    @property
    def tower(self) -> Literal["vit", "resnet", "other"]:
        """Family of the image tower: `other`, which nothing tunes."""
        return "other"

    @property
    def feature_dim(self) -> int:
        return self.dimension

    def encode_image(self, images: Tensor) -> Tensor:
        _refuse(self.name)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        _refuse(self.name)


def open_bundle_backbone(spec: str) -> Backbone:
    """The backbone of `bundle:FILE`, on the CPU; raises `BackboneError`."""
    try:
        bundle = open_bundle(Path(spec.removeprefix(PREFIX)))
    except DataError as error:
        raise BackboneError(str(error)) from error
    return FeatureBackbone(
        name=spec,
        model=_Temperature(bundle.logit_scale),
        tokenizer=lambda texts: _refuse(spec),
        preprocess=Preprocess(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        activation="none",
        fingerprint=_fingerprint(bundle),
        dimension=bundle.class_features.shape[1],
    )


class _Temperature(nn.Module):
    """A CLIP's one parameter outside its towers."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        value = torch.tensor(math.log(scale), dtype=torch.float32)
        self.logit_scale = nn.Parameter(value, requires_grad=False)


def _fingerprint(bundle: Bundle) -> str:
    header = f"{bundle.backbone_name}\0{bundle.logit_scale!r}".encode()
    return digest({"class_features": bundle.class_features}, header)


def _refuse(name: str) -> NoReturn:
    raise BackboneError(
        f"'{name}' holds features and no model: use a method on features (--space taskres), or a "
        "backbone and a data set with images."
    )
