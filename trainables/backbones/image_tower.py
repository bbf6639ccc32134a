"""The inside of a ViT image tower: extra tokens beside those of the image.

The tower's own modules are called in the order in which the tower calls them.

Notation: b images, s image side, k extra tokens, l the image's tokens, w the tower's width, d
feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone, BackboneError

_PARTS = frozenset({"conv1", "patch_dropout", "ln_pre", "transformer", "ln_post"})
_STEPS = ("_embeds", "_pool")
"""Methods of open_clip 3 that run before and after the blocks."""


@dataclass(frozen=True)
class ImageTower:
    """The parts of a ViT's tower; built by `image_tower`."""

    embed: Callable[[Tensor], Tensor]
    """Images [b, 3, s, s] -> tokens [b, l, w], normalised for the first block."""
    norm: nn.Module
    """[..., w] -> [..., w], as `embed` normalises tokens."""
    blocks: tuple[nn.Module, ...]
    """Each [b, l, w] -> [b, l, w], or with the first two axes swapped."""
    batch_first: bool
    """Whether the blocks' first axis is the batch."""
    pool: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Tokens [b, l, w] -> their summary [b, w'] and the remaining tokens."""
    projection: Tensor | None
    """[w', d]; None if the summary is the feature."""
    width: int
    """w."""

    def encode(self, images: Tensor, own: Sequence[Tensor] = ()) -> Tensor:
        """Images [b, 3, s, s] -> features [b, d], not normalised; differentiable in `own`.

        `own[i]` [k, w] are extra tokens appended to those of the image before block i; before the
        first block they are normalised like the image's. Extra tokens of the next block replace
        the outputs of these, otherwise those outputs continue. Pooling ignores extra tokens.
        Raises `ValueError` for more sets than blocks.
        """
        if len(own) > len(self.blocks):
            raise ValueError(
                f"sets of tokens must be at most {len(self.blocks)}, one per block, got {len(own)}"
            )
        x = self.embed(images)
        length = x.shape[1]
        for place, block in enumerate(self.blocks):
            if place < len(own):
                tokens = self.norm(own[place]) if place == 0 else own[place]
                x = torch.cat([x[:, :length], tokens.expand(x.shape[0], -1, -1)], dim=1)
            x = block(x) if self.batch_first else block(x.transpose(0, 1)).transpose(0, 1)
        summary, _ = self.pool(x[:, :length])
        return (summary if self.projection is None else summary @ self.projection).float()


def image_tower(backbone: Backbone) -> ImageTower:
    """The tower of `backbone`; raises `BackboneError` unless it is open_clip's own ViT with the
    parts that this file handles."""
    if backbone.tower != "vit":
        _refuse(backbone, f"a tower of the kind '{backbone.tower}'")
    visual = backbone.visual
    parts = {name for name, _ in visual.named_children()}
    if parts - {"attn_pool"} != _PARTS or not all(hasattr(visual, step) for step in _STEPS):
        _refuse(backbone, f"one with the parts {', '.join(sorted(parts))}")
    transformer = visual.get_submodule("transformer")
    if [name for name, _ in transformer.named_children()] != ["resblocks"]:
        _refuse(backbone, "one with more than blocks in its transformer")
    projection = visual.proj
    assert projection is None or isinstance(projection, Tensor)
    return ImageTower(
        embed=visual._embeds,  # type: ignore[arg-type]
        norm=visual.get_submodule("ln_pre"),
        blocks=tuple(transformer.get_submodule("resblocks").children()),
        batch_first=bool(transformer.batch_first),
        pool=visual._pool,  # type: ignore[arg-type]
        projection=projection,
        width=visual.get_parameter("class_embedding").shape[0],
    )


def _refuse(backbone: Backbone, found: str) -> NoReturn:
    raise BackboneError(
        f"extra image tokens need open_clip's own ViT as image tower, '{backbone.name}' has "
        f"{found}: use e.g. ViT-B-16, or a method on features (--space taskres)"
    )
