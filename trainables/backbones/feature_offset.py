"""A constant added to a backbone's image features, folded into the image tower's weights.

Notation: d feature dimension, w width before the last projection.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone

_TOLERANCE = 1e-4  # largest error of the offset, relative to the largest feature


def add_feature_offset(backbone: Backbone, offset: Tensor) -> Backbone | None:
    """The backbone whose image features are z + `offset` [d], in the same architecture.

    The constant goes into the bias of the last projection (ResNet, towers of timm), which open_clip
    can add to timm's linear projection, or through the projection into the bias of the norm before
    it (ViT). None if the tower has no layer that can carry it.
    """
    offset = offset.detach().reshape(-1).to(backbone.device)
    shifted = _shifted(backbone, offset)
    if shifted is None:
        return None
    side = backbone.preprocess.image_size
    probe = torch.linspace(-1, 1, 3 * side * side, device=backbone.device).view(1, 3, side, side)
    expected = backbone.encode_image(probe) + offset
    error = (shifted.encode_image(probe) - expected).abs().max()
    return shifted if error <= _TOLERANCE * expected.abs().max() else None


def _shifted(backbone: Backbone, offset: Tensor) -> Backbone | None:
    visual = backbone.visual
    parameters = dict(visual.named_parameters())
    if "ln_post.bias" in parameters:
        return _through_projection(backbone, parameters, offset)
    for layer in ("attnpool.c_proj", "head.proj", "head.mlp.fc2", *_classifier(visual)):
        if f"{layer}.bias" in parameters:
            name = f"visual.{layer}.bias"
            return backbone.changed({name: parameters[f"{layer}.bias"] + offset})
        if f"{layer}.weight" in parameters and layer.startswith("head."):
            return _with_bias(backbone, layer, offset)
    return None


def _through_projection(
    backbone: Backbone, parameters: Mapping[str, Tensor], offset: Tensor
) -> Backbone | None:
    """ViT: z = y P with y [w] behind the norm, so y + x with x P = `offset`. There is such an x
    unless P [w, d] has a lower rank than d."""
    bias, projection = parameters["ln_post.bias"], parameters.get("proj")
    addition = offset.double()
    if projection is not None:
        addition = torch.linalg.lstsq(projection.double().T, addition[:, None]).solution[:, 0]
    if addition.shape != bias.shape:
        return None
    return backbone.changed({"visual.ln_post.bias": (bias.double() + addition).to(bias.dtype)})


def _classifier(visual: nn.Module) -> list[str]:
    """The path of the last layer of a timm network without a separate projection."""
    trunk = getattr(visual, "trunk", None)
    found = trunk.get_classifier() if trunk is not None else None
    return [path for path, module in visual.named_modules() if module is found and found]


def _with_bias(backbone: Backbone, layer: str, offset: Tensor) -> Backbone:
    """timm: the last linear layer gets a bias, which is an option of its architecture."""
    kept = [*backbone.model.parameters(), *backbone.model.buffers()]
    model = copy.deepcopy(backbone.model, {id(tensor): tensor for tensor in kept})
    bias = nn.Parameter(offset.clone(), requires_grad=False)
    model.get_submodule(f"visual.{layer}").register_parameter("bias", bias)
    digest = hashlib.sha256(backbone.fingerprint.encode())
    digest.update(f"visual.{layer}.bias".encode() + offset.cpu().numpy().tobytes())
    architecture = dict(backbone.architecture)
    if architecture:
        architecture["vision_cfg"] = architecture["vision_cfg"] | {"timm_proj_bias": True}
    return replace(backbone, model=model, architecture=architecture, fingerprint=digest.hexdigest())
