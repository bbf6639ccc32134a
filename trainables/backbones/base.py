"""What the project needs from a CLIP-like model, whatever its origin.

Notation: b images, t texts, d feature dimension, s image side in pixels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainables.images.resample import Interpolation, ResizeMode, center_crop, resample, sizes_of


class BackboneError(ValueError):
    """A backbone cannot be built; the message states the rule, the value and the fix."""


@dataclass(frozen=True)
class Preprocess:
    """The test-time image transform, on uint8 images of any sizes."""

    image_size: int
    """Side of the square that the model reads, in pixels."""
    mean: tuple[float, float, float]
    """Per-channel mean, of values in 0..1."""
    std: tuple[float, float, float]
    """Per-channel standard deviation, of values in 0..1."""
    interpolation: Interpolation = "bicubic"
    """How pixels are resampled."""
    resize_mode: ResizeMode = "shortest"
    """`shortest`: the shorter side becomes `image_size`, then a centre crop; `longest`: the longer
    one does, and the rest is black; `squash`: both do."""

    def resize(
        self, images: Tensor | Sequence[Tensor], device: torch.device | str = "cpu"
    ) -> Tensor:
        """uint8 [3, h, w] images, or one tensor of them, -> uint8 [n, 3, s, s] on `device`."""
        cut = center_crop(sizes_of(images), self.image_size, self.resize_mode)
        return resample(images, cut, self.image_size, self.interpolation, device)

    def describe(self) -> str:
        """All of it in a few words."""
        mode = {
            "shortest": "shorter side resized and centre cropped",
            "longest": "longer side resized and padded",
            "squash": "both sides resized",
        }[self.resize_mode]
        mean, std = (" ".join(f"{v:.3g}" for v in values) for values in (self.mean, self.std))
        return (
            f"images of {self.image_size} pixels, {self.interpolation}, {mode}, mean {mean}, "
            f"deviation {std}"
        )

    def normalise(self, images: Tensor) -> Tensor:
        """[n, 3, s, s] with values 0..255 (uint8 or float) -> float32, zero mean, unit spread."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP in float32: two towers, a tokenizer, and the facts that identify them."""

    name: str
    """Its specification, e.g. `tiny` or `ViT-B-16:openai`."""
    model: nn.Module
    """An open_clip CLIP in evaluation mode; none of its parameters requires a gradient."""
    tokenizer: Callable[[list[str]], Tensor]
    """Texts -> int64 token ids [t, context length]."""
    preprocess: Preprocess
    """The test-time image transform."""
    activation: str
    """`gelu` or `quick_gelu`: what the modules of open_clip's own towers run."""
    fingerprint: str
    """Hex digest over architecture, activation, weights and preprocessing."""
    architecture: Mapping[str, Any] = field(
        default_factory=dict, kw_only=True, compare=False, repr=False
    )
    """open_clip's configuration that the model was built from; empty if there is none."""
    merges: Path | None = field(default=None, kw_only=True, compare=False, repr=False)
    """The file of the tokenizer's vocabulary, if it is not open_clip's own."""
    notices: tuple[str, ...] = field(default=(), kw_only=True, compare=False, repr=False)
    """What a user should check: activation and preprocessing, and where they come from."""

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return self.model.get_submodule("visual")

    @property
    def logit_scale(self) -> Tensor:
        """The temperature's inverse, exp(logit_scale): a positive scalar tensor."""
        return self.model.get_parameter("logit_scale").exp().reshape(())

    @property
    def tower(self) -> Literal["vit", "resnet", "other"]:
        """The family of the image tower, by the layers it has."""
        if hasattr(self.visual, "transformer"):
            return "vit"
        return "resnet" if hasattr(self.visual, "attnpool") else "other"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.get_parameter("logit_scale").device

    @property
    def feature_dim(self) -> int:
        """Length d of image and text features."""
        return int(self.encode_text(["x"]).shape[1])

    def to(self, device: torch.device | str) -> Backbone:
        """The same backbone with its weights on `device` (moved, not copied)."""
        self.model.to(device)
        return self

    def changed(self, weights: Mapping[str, Tensor]) -> Backbone:
        """A backbone with other values for some of the model's parameters, given by name; it shares
        all others. Its fingerprint depends on the names and values."""
        kept = [*self.model.parameters(), *self.model.buffers()]
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in kept})
        digest = hashlib.sha256(self.fingerprint.encode())
        for name in sorted(weights):
            path, _, own = name.rpartition(".")
            value = weights[name].detach().clone()
            known = model.get_parameter(name)
            if value.shape != known.shape:
                raise BackboneError(
                    f"'{name}' must have the shape {list(known.shape)}, got {list(value.shape)}"
                )
            setattr(model.get_submodule(path), own, nn.Parameter(value, requires_grad=False))
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return replace(self, model=model, fingerprint=digest.hexdigest())

    def sees_as(self, other: Backbone) -> bool:
        """Whether both share their image tower (`changed` left it alone), and so all features."""
        mine, its = ([*b.visual.parameters(), *b.visual.buffers()] for b in (self, other))
        return len(mine) == len(its) and all(a is b for a, b in zip(mine, its, strict=True))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Preprocessed float32 [b, 3, s, s] -> float32 [b, d], not normalised."""
        features: Tensor = self.visual(images)
        return features.float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """t texts -> float32 [t, d], not normalised."""
        encode: Callable[[Tensor], Tensor] = self.model.encode_text  # type: ignore[assignment]
        return encode(self.tokenizer(list(texts)).to(self.device)).float()


def check_features(backbone: Backbone) -> None:
    """Encode two images and two texts; raises `BackboneError` if their features are not finite,
    zero or equal, as those of damaged or untrained towers."""
    side = backbone.preprocess.image_size
    ramp = torch.linspace(0, 255, side, device=backbone.device).expand(3, side, side)
    images = backbone.preprocess.normalise(torch.stack([ramp, ramp.mT.flip(1)]))
    for kind, features in (
        ("image", backbone.encode_image(images)),
        ("text", backbone.encode_text(["a photo of a cat.", "a photo of a dog."])),
    ):
        problem = ""
        if not features.isfinite().all():
            problem = "not finite"
        elif not features.any(dim=1).all():
            problem = "zero"
        elif torch.equal(features[0], features[1]):
            problem = "the same whatever the input"
        if problem:
            raise BackboneError(
                f"features must be finite and depend on the input, and the {kind} tower of "
                f"'{backbone.name}' gives features that are {problem}: check its weights"
            )
