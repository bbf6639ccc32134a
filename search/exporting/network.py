"""A trained model as one network: preprocessed images in, logits out.

Notation: b images, c classes, s image side.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.feature_offset import add_feature_offset
from trainables.methods.base import Head, Predictor
from trainables.training import TrainedModel

IMAGES, LOGITS = "images", "logits"
"""Names of the input and the output."""


class NoGraphError(Exception):
    """Why a model cannot be written as one graph, in one line."""


class LinearNetwork(nn.Module):
    """A CLIP's image tower and a linear classifier, which is what most methods amount to."""

    weight: Tensor
    bias: Tensor | None
    offset: Tensor | None

    def __init__(self, visual: nn.Module, linear_head: Head) -> None:
        super().__init__()
        self.visual = visual
        for name in ("weight", "bias", "offset"):
            tensor: Tensor | None = getattr(linear_head, name)
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """float32 [b, 3, s, s] -> logits [b, c]."""
        features = self.visual(images)
        if self.offset is not None:
            features = features + self.offset
        return functional.linear(functional.normalize(features, dim=-1), self.weight, self.bias)


class MethodNetwork(nn.Module):
    """An image tower and the method behind it."""

    def __init__(self, visual: nn.Module, method: Predictor) -> None:
        super().__init__()
        self.visual = visual if method.input_kind == "features" else nn.Identity()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """float32 [b, 3, s, s] -> logits [b, c]."""
        logits: Tensor = self.method(self.visual(images))
        return logits


def merged(trained: TrainedModel) -> tuple[Backbone, Head] | None:
    """The backbone with everything learned folded in, and the linear classifier behind it. None if
    the method is more than that, or its image tower cannot carry an offset of the features."""
    found = _linear(trained)
    if found is None:
        return None
    backbone, linear_head = found
    if linear_head.offset is None:
        return found
    shifted = add_feature_offset(backbone, linear_head.offset)
    return None if shifted is None else (shifted, replace(linear_head, offset=None))


def network(trained: TrainedModel) -> nn.Module:
    """The model as one network, in evaluation mode."""
    found = _linear(trained)
    if found is not None:
        return LinearNetwork(found[0].visual, found[1]).eval()
    return MethodNetwork(trained.backbone.visual, trained.method).eval()


def _linear(trained: TrainedModel) -> tuple[Backbone, Head] | None:
    method = trained.method
    linear_head = method.linear_head()
    if linear_head is None:
        return None
    return method.merged_backbone() if method.changes_backbone else trained.backbone, linear_head


def program(trained: TrainedModel) -> ExportedProgram:
    """The model as a graph of torch's own operations, for one image or more. Raises `NoGraphError`
    if the computation of its method cannot be expressed as one."""
    side = trained.backbone.preprocess.image_size
    example = torch.zeros(2, 3, side, side)
    fused = torch.backends.mha.get_fastpath_enabled()
    # Attention's fused inference path is one operation that only PyTorch itself knows.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, about torch
            shapes = {IMAGES: {0: Dim("batch", min=1)}}
            found = network(trained)
            found(example)  # methods compute their text features, which the graph holds as they are
            return torch.export.export(found, (example,), dynamic_shapes=shapes)
    except Exception as error:  # whatever a method does that a graph cannot express
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise NoGraphError(reason) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
