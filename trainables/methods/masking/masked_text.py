"""The text tower with other weights: class features that are computed anew in every step.

Notation: t texts, c classes, d feature dimension, w context length.
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
"""Texts that are encoded at a time. More than these are encoded a second time when gradients go
back, instead of keeping what a thousand classes' activations take (tens of GiB)."""


class _Encoder(nn.Module):
    """`encode_text` as a module's forward, which `functional_call` needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        encode: Callable[[Tensor], Tensor] = self.model.encode_text  # type: ignore[assignment]
        return encode(tokens)


class TextTower:
    """Weights of the text tower -> class features, for fixed classes, tokenised once."""

    def __init__(self, backbone: Backbone, classes: ClassTexts) -> None:
        """Raises `MethodError` where the classes have no texts."""
        if classes.prompts is None:
            raise MethodError(
                "the text tower needs the classes' texts, and there are only their features, as "
                "in a bundle: use a data set with class names, or masks on the image tower"
            )
        rows = classes.prompts.texts()
        tokens = backbone.tokenizer([text for row in rows for text in row])
        self._sizes = [len(row) for row in rows]
        self._normalise_each = classes.prompts.normalise_each
        self._encoder = _Encoder(backbone.model)
        self._tokens, self._shorter = _shortened(backbone.model, tokens.to(backbone.device))

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Parameters of the model that differ, by name -> class features [c, d], not normalised:
        means over each class's texts, as `class_features` makes them."""
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
    """Masked text weights -> classifier [c, d], unit vectors times the logit scale.

    While no gradient is wanted, the last result is kept: judging a large test set takes many
    batches, with the same masks. Weights are compared, not watched: fused optimisers change scores
    without leaving a trace.
    """

    def __init__(self, backbone: Backbone, classes: ClassTexts) -> None:
        """Raises `MethodError` where the classes have no texts."""
        self._tower = TextTower(backbone, classes)
        self._scale = backbone.logit_scale.detach()
        self._last: tuple[dict[str, Tensor], Tensor] | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """See `TextTower`."""
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
    """Tokens without the padding that no text needs, and what else must be shorter for that.

    Attention that looks back only, and a feature read off at the end of text, never see what
    follows: the result is the same, for a fraction of the work (class names fill a fifth of the
    context of 77). Elsewhere nothing is cut.
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
