"""The inside of a text tower: from token embeddings to features, and its last layer alone.

`Backbone.encode_text` begins with token ids; methods that learn vectors in place of tokens begin
one step later, here. The weights are the backbone's own, and frozen.

Notation: t texts, l places for tokens, w the tower's width, d feature dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainables.backbones.base import Backbone, BackboneError

PIECES = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")

AT_ONCE = 128
"""Texts that go through the tower together. A step on more of them runs the forward pass twice, so
that it stores activations for this many only: a thousand classes would need tens of gigabytes."""


@dataclass(frozen=True)
class DeepTokens:
    """Tokens that replace the outputs of others inside the tower."""

    places: Tensor
    """int64 [t, m]: the places of the replaced tokens in each text."""
    own: Sequence[Tensor]
    """[m, w] each: those of the second block, of the third, and so on, for all texts."""

    def split(self, size: int) -> list[DeepTokens]:
        """Split into parts of the texts, `size` texts each."""
        return [DeepTokens(places, self.own) for places in self.places.split(size)]


@dataclass(frozen=True)
class TextTower:
    """The parts of CLIP's text tower; built by `text_tower`."""

    tokens: nn.Embedding
    """Token ids -> [..., w]."""
    positions: Tensor
    """[l, w], added to the tokens by their place."""
    transformer: nn.Module
    """[t, l, w] and a mask -> [t, l, w]."""
    norm: nn.Module
    """[..., w] -> [..., w]."""
    project: Callable[[Tensor], Tensor]
    """[t, w] -> [t, d]."""
    mask: Tensor | None
    """[l, l], added to the attention's logits; None if every place attends to all others."""
    causal: bool
    """Whether no place attends to a later one."""

    @property
    def places(self) -> int:
        """l, the context length: how many tokens a text may have, start and end included."""
        return len(self.positions)

    @property
    def width(self) -> int:
        """Length w of a token's embedding."""
        return self.positions.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.positions.device

    def ends(self, ids: Tensor) -> Tensor:
        """Token ids [t, l] -> int64 [t]: the place of the end-of-text token (the largest id), from
        which the tower reads a text's feature."""
        return ids.argmax(dim=-1)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [t, l] -> embeddings [t, l', w], without positions.

        In a causal tower l' ends with the longest text, since later places change nothing; a
        class name with its context fills a third of CLIP's 77 places.
        """
        used = int(self.ends(ids).max()) + 1 if self.causal else ids.shape[1]
        embeddings: Tensor = self.tokens(ids[:, :used])
        return embeddings

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The transformer's blocks, in order."""
        return tuple(self.transformer.get_submodule("resblocks").children())

    def encode(self, embeddings: Tensor, ends: Tensor, deep: DeepTokens | None = None) -> Tensor:
        """Embeddings [t, l', w] and the places of their ends [t] -> [t, d], not normalised.

        Differentiable in the embeddings and in the deep tokens, of which there are at most as many
        sets as blocks after the first; at most `AT_ONCE` texts are held in memory.
        """
        parts = zip(
            embeddings.split(AT_ONCE),
            ends.split(AT_ONCE),
            deep.split(AT_ONCE) if deep else [None] * -(-len(ends) // AT_ONCE),
            strict=True,
        )
        if len(embeddings) <= AT_ONCE or not torch.is_grad_enabled():
            return torch.cat([self._encode(*part) for part in parts])
        return torch.cat(
            [
                checkpoint(self._encode, *part, use_reentrant=False, preserve_rng_state=False)
                for part in parts
            ]
        )

    def _encode(self, embeddings: Tensor, ends: Tensor, deep: DeepTokens | None) -> Tensor:
        used = embeddings.shape[1]
        mask = None if self.mask is None else self.mask[:used, :used]
        inner = embeddings + self.positions[:used]
        if deep is None:
            inner = self.transformer(inner, attn_mask=mask)
        else:
            inner = self._through_blocks(inner, mask, deep)
        rows = torch.arange(len(inner), device=inner.device)
        # The norm acts on each place separately, and only one place is read.
        return self.project(self.norm(inner[rows, ends]))

    def _through_blocks(self, x: Tensor, mask: Tensor | None, deep: DeepTokens) -> Tensor:
        """As the transformer calls its blocks, [t, l', w] -> [t, l', w]."""
        first = bool(self.transformer.batch_first)
        index = deep.places[..., None].expand(-1, -1, self.width)
        for number, block in enumerate(self.blocks):
            if 0 < number <= len(deep.own):
                x = x.scatter(1, index, deep.own[number - 1].expand(len(x), -1, -1))
            x = block(x, attn_mask=mask) if first else _swapped(block, x, mask)
        return x


def _swapped(block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """A block that reads its texts along the second axis."""
    found: Tensor = block(x.transpose(0, 1), attn_mask=mask)
    return found.transpose(0, 1)


def text_tower(backbone: Backbone) -> TextTower:
    """The tower of `backbone`; raises `BackboneError` if it is not of CLIP's kind."""
    model = backbone.model
    # A CLIP carries the pieces itself, a CustomTextCLIP in a submodule.
    part: nn.Module = getattr(model, "text", model)
    missing = [name for name in PIECES if not hasattr(part, name)]
    pool = getattr(part, "text_pool_type", getattr(part, "pool_type", None))
    if missing:
        _refuse(backbone, f"has no {', '.join(missing)}")
    if pool != "argmax":
        _refuse(backbone, f"reads a text's feature at '{pool}'")
    if getattr(part, "cls_emb", None) is not None or getattr(part, "use_pad_mask", False):
        _refuse(backbone, "appends a class token, or masks its padding")
    mask: Tensor | None = part.attn_mask  # type: ignore[assignment]
    causal = mask is not None and torch.equal(mask.isneginf(), torch.ones_like(mask).triu(1) > 0)
    return TextTower(
        part.get_submodule("token_embedding"),  # type: ignore[arg-type]
        part.get_parameter("positional_embedding"),
        part.get_submodule("transformer"),
        part.get_submodule("ln_final"),
        _projection(part.text_projection),
        mask,
        causal,
    )


def _projection(piece: object) -> Callable[[Tensor], Tensor]:
    """open_clip keeps it as a layer, as a bare matrix [w, d], or not at all."""
    if piece is None:
        return nn.Identity()
    if isinstance(piece, nn.Module):
        return piece
    assert isinstance(piece, Tensor)
    matrix = piece
    return lambda inner: inner @ matrix


def _refuse(backbone: Backbone, what: str) -> None:
    raise BackboneError(
        "learned prompts need the text tower of a CLIP, which reads a text's feature at its "
        f"end-of-text token; '{backbone.name}' {what}: use e.g. ViT-B-16, or a method that needs "
        "features alone (--space taskres)"
    )


_PLACES = ("text_projection", "text.text_projection")  # of `CLIP` and of `CustomTextCLIP`


@dataclass(frozen=True)
class TextProjection:
    """The last layer of a text tower: text features are an affine function of its states."""

    backbone: Backbone
    """The backbone with this layer."""
    path: str
    """Its name in the model."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its tensors by the names of the model's parameters: [w, d], or [d, w] and perhaps [d] of
        an `nn.Linear`."""
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
        """t texts -> float32 [t, w]: the layer's input: the text transformer's output after its
        last norm at the place that the model reads (CLIP: the end token).

        Texts are encoded 256 at a time.
        """
        kept = [*self.backbone.model.parameters(), *self.backbone.model.buffers()]
        model = copy.deepcopy(self.backbone.model, {id(tensor): tensor for tensor in kept})
        owner, _, own = self.path.rpartition(".")
        setattr(model.get_submodule(owner), own, None)  # the tower without this layer
        bare = replace(self.backbone, model=model)
        return torch.cat([bare.encode_text(texts[i : i + 256]) for i in range(0, len(texts), 256)])


def text_projection(backbone: Backbone) -> TextProjection | None:
    """The layer of `backbone`, or None if it has none."""
    parameters = dict(backbone.model.named_parameters())
    for path in _PLACES:
        if path in parameters or f"{path}.weight" in parameters:
            return TextProjection(backbone, path)
    return None
