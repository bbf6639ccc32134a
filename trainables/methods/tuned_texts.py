"""Class features from a text tower that is being tuned: computed anew when its tensors changed.

Notation: c classes, d feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.text_tower import AT_ONCE, text_tower
from trainables.data.prompts import PromptSet


class TunedTexts:
    """The features of some classes, by a text tower that holds trainable tensors."""

    def __init__(self, backbone: Backbone, prompts: PromptSet, tensors: Sequence[Tensor]) -> None:
        """`tensors`: all that the features depend on and that may change.

        Texts are split into tokens once, here. Raises `BackboneError` for a tower of an unknown
        kind.
        """
        self._tower = text_tower(backbone)
        rows = prompts.texts()
        ids = backbone.tokenizer([text for row in rows for text in row]).to(backbone.device)
        self._sizes = [len(row) for row in rows]
        self._normalise_each = prompts.normalise_each
        self._inputs, self._ends = self._tower.embed(ids), self._tower.ends(ids)
        self._tensors = tuple(tensors)
        self._known: tuple[Tensor, Tensor] | None = None

    def features(self) -> Tensor:
        """float32 [c, d], not normalised. With gradients, computed; without, kept until one of
        the tensors changes."""
        if torch.is_grad_enabled():
            return self._encode()
        # Compared by value: torch's fused optimisers do not count up a tensor's version.
        state = torch.cat([tensor.detach().flatten() for tensor in self._tensors])
        if self._known is None or not torch.equal(self._known[0], state):
            self._known = state, self._encode()
        return self._known[1]

    def _encode(self) -> Tensor:
        """Merged as `class_features` does.

        All inner values are kept for the gradient: a tower that is run a second time instead
        would draw other dropout.
        """
        parts = zip(self._inputs.split(AT_ONCE), self._ends.split(AT_ONCE), strict=True)
        features = torch.cat([self._tower.encode(*part).float() for part in parts])
        if self._normalise_each:
            features = functional.normalize(features, dim=-1)
        return torch.stack([part.mean(dim=0) for part in features.split(self._sizes)])
