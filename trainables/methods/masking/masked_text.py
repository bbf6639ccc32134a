"""A text tower with other weights: class features that are computed in every step.

Notation: c classes, d feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainables.backbones.base import Backbone
from trainables.methods.base import ClassTexts, MethodError

_TEXTS = 256
"""Texts per forward pass. With more texts than that, gradients run each forward pass a second time
instead of keeping its activations, which take tens of GiB for a thousand classes."""


class _Encoder(nn.Module):
    """`encode_text` as a module's forward, which `functional_call` needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        encode: Callable[[Tensor], Tensor] = self.model.encode_text  # type: ignore[assignment]
        return encode(tokens)


class TextTower:
    """Maps weights of the text tower to class features; tokenises the classes' texts once."""

    def __init__(self, backbone: Backbone, classes: ClassTexts) -> None:
        """Raises `MethodError` if the classes have no texts."""
        if classes.prompts is None:
            raise MethodError(
                "the text tower needs the classes' texts, but only their features are known, as "
                "in a bundle: use a data set with class names, or masks on the image tower"
            )
        rows = classes.prompts.texts()
        tokens = backbone.tokenizer([text for row in rows for text in row])
        self._sizes = [len(row) for row in rows]
        self._normalise_each = classes.prompts.normalise_each
        self._encoder = _Encoder(backbone.model)
        self._tokens, self._shorter = _shortened(backbone.model, tokens.to(backbone.device))

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Parameters of the model to replace, by name -> class features [c, d], not normalised:
        the mean over each class's texts, as in `class_features`."""
        given = {f"model.{name}": w for name, w in (*self._shorter.items(), *weights.items())}

        def encode(tokens: Tensor) -> Tensor:
            features: Tensor = functional_call(self._encoder, given, (tokens,))
            return features.float()

        parts = self._tokens.split(_TEXTS)
        again = len(parts) > 1 and _wants_gradient(weights)
        features = torch.cat(
            [
                checkpoint(encode, part, use_reentrant=False, preserve_rng_state=False)
                if again
                else encode(part)
                for part in parts
            ]
        )
        if self._normalise_each:
            features = functional.normalize(features, dim=-1)
        return torch.stack([part.mean(dim=0) for part in features.split(self._sizes)])


class MaskedClassifier:
    """Maps masked text weights to a classifier [c, d]: unit vectors times the logit scale.

    Without gradients the last result is cached, since a large test set takes many batches with the
    same masks. Weights are compared by value: fused optimisers change scores without increasing
    their version.
    """

    def __init__(self, backbone: Backbone, classes: ClassTexts) -> None:
        """Raises `MethodError` if the classes have no texts."""
        self._tower = TextTower(backbone, classes)
        self._scale = backbone.logit_scale.detach()
        self._last: tuple[dict[str, Tensor], Tensor] | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Parameters to replace, by name -> classifier [c, d]."""
        if _wants_gradient(weights):
            self._last = None
            return self._classifier(weights)
        if self._last is None or not _equal(self._last[0], weights):
            self._last = dict(weights), self._classifier(weights)
        return self._last[1]

    def _classifier(self, weights: Mapping[str, Tensor]) -> Tensor:
        return self._scale * functional.normalize(self._tower(weights), dim=-1)


def _wants_gradient(weights: Mapping[str, Tensor]) -> bool:
    return torch.is_grad_enabled() and any(w.requires_grad for w in weights.values())


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def _shortened(model: nn.Module, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens without the padding that no text needs, and the model's tensors that must be
    shortened with them.

    Causal attention and a feature taken at the end-of-text token do not depend on what follows, so
    the result is the same for a fraction of the work (class names fill a fifth of the context of
    77). For other text towers nothing is cut.
    """
    position = getattr(model, "positional_embedding", None)
    causal = getattr(model, "attn_mask", None)
    pooled = getattr(model, "text_pool_type", None)
    if position is None or causal is None or pooled != "argmax":
        return tokens, {}
    length = int(tokens.argmax(dim=-1).max()) + 1
    shorter = {
        "positional_embedding": position[:length],
        "attn_mask": causal[:length, :length],
    }
    return tokens[:, :length], shorter
