"""The last layer of a text tower: from the text transformer's output to the text features.

Notation: t texts, w width of the text transformer, d feature dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone

_PLACES = ("text_projection", "text.text_projection")  # of `CLIP` and of `CustomTextCLIP`


@dataclass(frozen=True)
class TextProjection:
    """A layer without non-linearity: the text features are an affine function of the states."""

    backbone: Backbone
    """Whose layer it is."""
    path: str
    """Where it is in the model."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its tensors by the names of the model's parameters: [w, d] or, of an `nn.Linear`, [d, w]
        and perhaps [d]."""
        return {
            name: parameter.detach()
            for name, parameter in self.backbone.model.named_parameters()
            if name == self.path or name.startswith(f"{self.path}.")
        }

    def project(self, states: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """States [t, w] -> text features [t, d], not normalised, by `weights` of the layer's names
        and shapes."""
        if self.path in weights:
            return states @ weights[self.path]
        bias = weights.get(f"{self.path}.bias")
        return functional.linear(states, weights[f"{self.path}.weight"], bias)

    def states(self, texts: Sequence[str]) -> Tensor:
        """t texts -> float32 [t, w]: what the layer is given, the text transformer's output where
        the model reads a text's meaning off (CLIP: at the end token), after its last norm.

        Texts are encoded 256 at a time.
        """
        kept = [*self.backbone.model.parameters(), *self.backbone.model.buffers()]
        model = copy.deepcopy(self.backbone.model, {id(tensor): tensor for tensor in kept})
        owner, _, own = self.path.rpartition(".")
        setattr(model.get_submodule(owner), own, None)  # as of a tower without this layer
        bare = replace(self.backbone, model=model)
        return torch.cat([bare.encode_text(texts[i : i + 256]) for i in range(0, len(texts), 256)])


def text_projection(backbone: Backbone) -> TextProjection | None:
    """The layer of `backbone`, or None where there is none."""
    parameters = dict(backbone.model.named_parameters())
    for path in _PLACES:
        if path in parameters or f"{path}.weight" in parameters:
            return TextProjection(backbone, path)
    return None
