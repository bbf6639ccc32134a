"""A trained model as one network: preprocessed images in, logits out.

Notation: b images, c classes, s image side.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from search.core.problems import UsageError
from trainables.backbones.base import Backbone
from trainables.methods.base import Head, Method
from trainables.stages import Training

IMAGES, LOGITS = "images", "logits"
"""Names of what goes in and what comes out."""


class LinearNetwork(nn.Module):
    """A CLIP's image tower and a linear classifier: what most methods amount to."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, visual: nn.Module, linear_head: Head) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("weight", linear_head.weight.detach().clone())
        self.register_buffer(
            "bias", None if linear_head.bias is None else linear_head.bias.detach().clone()
        )

    def forward(self, images: Tensor) -> Tensor:
        """float32 [b, 3, s, s] -> logits [b, c]."""
        unit = functional.normalize(self.visual(images), dim=-1)
        return functional.linear(unit, self.weight, self.bias)


class MethodNetwork(nn.Module):
    """The method as it computes itself."""

    def __init__(self, visual: nn.Module, method: Method) -> None:
        super().__init__()
        self.visual = visual if method.input_kind == "features" else nn.Identity()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """float32 [b, 3, s, s] -> logits [b, c]."""
        logits: Tensor = self.method(self.visual(images))
        return logits


def merged(training: Training) -> tuple[Backbone, Head] | None:
    """The backbone with what was learned folded in, and the linear classifier behind it; none where
    the method is more than that."""
    method = training.method
    linear_head = method.linear_head()
    if linear_head is None:
        return None
    return method.merged_backbone() if method.changes_backbone else training.backbone, linear_head


def network(training: Training) -> nn.Module:
    """The model as one network, in evaluation mode."""
    simple = merged(training)
    if simple is not None:
        return LinearNetwork(simple[0].visual, simple[1]).eval()
    return MethodNetwork(training.backbone.visual, training.method).eval()


def program(training: Training) -> ExportedProgram:
    """The model as a graph of torch's own operations, for any number of images at least 1; raises
    `UsageError` for a method whose computation cannot be written down as one."""
    side = training.backbone.preprocess.image_size
    example = torch.zeros(2, 3, side, side)
    fused = torch.backends.mha.get_fastpath_enabled()
    # Attention's fused inference path is one operation that only PyTorch itself knows.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, about torch
            shapes = {IMAGES: {0: Dim("batch", min=1)}}
            return torch.export.export(network(training), (example,), dynamic_shapes=shapes)
    except Exception as error:  # whatever a method does that a graph cannot hold
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UsageError(
            [
                f"A model is exported as one graph for any number of images, which "
                f"{type(training.method).__name__} does not allow ({reason}): use --format "
                "artifact."
            ]
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
