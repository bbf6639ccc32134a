"""A ViT image tower from the inside: with tokens of one's own beside those of the image.

The weights are the backbone's own, and so is the arithmetic: the tower's own parts are called in
the order in which the tower calls them.

Notation: b images, s image side, k own tokens, l the image's tokens, w the tower's width, d feature
dimension.
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
"""What open_clip 3 does before and after the blocks."""


@dataclass(frozen=True)
class ImageTower:
    """The tower of a ViT, piece by piece; made by `image_tower`."""

    embed: Callable[[Tensor], Tensor]
    """Images [b, 3, s, s] -> tokens [b, l, w], normalised for the first block."""
    norm: nn.Module
    """[..., w] -> [..., w]: how `embed` normalises a token."""
    blocks: tuple[nn.Module, ...]
    """Each [b, l, w] -> [b, l, w], or with the first two axes exchanged."""
    batch_first: bool
    """Whether the blocks' first axis is that of the images."""
    pool: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Tokens [b, l, w] -> their summary [b, w'], and what else there is."""
    projection: Tensor | None
    """[w', d]; None where the summary is the feature."""
    width: int
    """w."""

    def encode(self, images: Tensor, own: Sequence[Tensor] = ()) -> Tensor:
        """Images [b, 3, s, s] -> features [b, d], not normalised; differentiable in `own`.

        `own[i]` [k, w] are tokens that stand before block i, after those of the image; before the
        first one they are normalised as those are. Where there are tokens for the next block, they
        take the place of what has become of these; else that goes on. At the end own tokens are
        left out, whatever the pooling. Raises `ValueError` for more than there are blocks.
        """
        if len(own) > len(self.blocks):
            raise ValueError(
                f"at most {len(self.blocks)} sets of tokens, one a block, got {len(own)}"
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
    """The tower of `backbone`; raises `BackboneError` where it is not open_clip's own ViT, or has
    parts that this file does not know."""
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
        f"tokens beside the image's need open_clip's own ViT as image tower, '{backbone.name}' has "
        f"{found}: use e.g. ViT-B-16, or a method that does without (--space taskres)"
    )
