"""Prompts with gaps: class names as tokens, and between them room for learned vectors.

Notation: c classes, m context tokens, l places for tokens, w the text tower's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.text_tower import TextTower, text_tower
from trainables.data.prompts import PromptSet
from trainables.methods.base import ClassTexts, MethodError

ClassPosition = Literal["end", "middle", "front"]
"""Where a class name stands: after the context, between its halves, or before it."""

RANDOM_SPREAD = 0.02
"""Standard deviation of contexts that are drawn at random (CoOp, section 4.1)."""


@dataclass(frozen=True)
class GappedPrompts:
    """One prompt a class: embeddings of the fixed tokens, and where the learned ones go."""

    embeddings: Tensor
    """[c, l, w], without positions; zero in the gaps."""
    gaps: Tensor
    """int64 [c, m]: the places of the context, in its order."""
    ends: Tensor
    """int64 [c]: the places of the end-of-text tokens."""

    def filled(self, context: Tensor) -> Tensor:
        """Context [..., m, w] -> embeddings [..., c, l, w]; where the axis before m is c or 1
        long, each class gets its own, or the same."""
        shape = torch.broadcast_shapes(context.shape[:-2], self.ends.shape)
        width = context.shape[-1]
        return self.embeddings.expand(*shape, -1, -1).scatter(
            -2,
            self.gaps[..., None].expand(*shape, -1, width),
            context.expand(*shape, -1, -1),
        )


@dataclass(frozen=True)
class PromptWriter:
    """Puts class names into words that a text tower reads."""

    tower: TextTower
    """Of the backbone."""
    tokenizer: Callable[[list[str]], Tensor]
    """Texts -> int64 ids [t, l]: start, body, end, zeros; see `Backbone.tokenizer`."""

    @classmethod
    def of(cls, backbone: Backbone) -> PromptWriter:
        """Raises `MethodError` where the backbone has no text tower that can be fed."""
        try:
            return cls(text_tower(backbone), backbone.tokenizer)
        except BackboneError as error:
            raise MethodError(str(error)) from error

    def prompts(
        self, classes: ClassTexts, tokens: int, position: ClassPosition = "end"
    ) -> GappedPrompts:
        """«[context] name.», with `tokens` gaps for the context; raises `MethodError` where a name
        leaves no room for them, or where only features of the classes are known.

        Tokens are counted, not words: the released codes count the words of their templates.
        """
        names = texts_of(classes).class_names
        rows = self.tokenizer([f"{name}." for name in names])
        sizes = [size - 1 for size in self._ends(rows)]
        # The full stop may melt with a name's own («Jr..»): the name's tokens are counted alone.
        lengths = [end - 1 for end in self._ends(self.tokenizer(list(names)))]
        self._check_room(names, sizes, tokens)
        ids = torch.zeros_like(rows)
        gaps = torch.empty(len(names), tokens, dtype=torch.int64)
        before = {"end": tokens, "middle": tokens // 2, "front": 0}[position]
        for row, size, length, new, places in zip(rows, sizes, lengths, ids, gaps, strict=True):
            name = 1 + before  # the place of its first token
            after = name + length
            places[:before] = torch.arange(1, name)
            places[before:] = torch.arange(after, after + tokens - before)
            # What is not context, in its order: start, name, full stop, end.
            free = torch.ones(len(new), dtype=torch.bool)
            free[places] = False
            new[free.nonzero()[: size + 2, 0]] = row[: size + 2]
        device = self.tower.device
        ids, gaps = ids.to(device), gaps.to(device)
        embeddings = self.tower.embed(ids)
        width = embeddings.shape[-1]
        return GappedPrompts(
            embeddings.scatter(1, gaps[..., None].expand(-1, -1, width), 0.0),
            gaps,
            self.tower.ends(ids),
        )

    def context(self, tokens: int, words: str, rng: torch.Generator, copies: int = 0) -> Tensor:
        """First values: [m, w], or [copies, m, w] where there are copies.

        Drawn from N(0, 0.02^2); or the embeddings of `words`, at the end, and zeros before them
        where there are fewer than `tokens` (as in ProGrad's code). Raises `MethodError` where
        there are more.
        """
        shape = (*((copies,) if copies else ()), tokens, self.tower.width)
        if not words:
            return (RANDOM_SPREAD * torch.randn(shape, generator=rng)).to(self.tower.device)
        ids = self.tokenizer([words])
        size = self._ends(ids)[0] - 1
        if size > tokens:
            raise MethodError(
                f"init_words must have at most context_tokens ({tokens}) tokens, got {size} in "
                f"{words!r}: use context_tokens={size}, or fewer words"
            )
        context = torch.zeros(shape, device=self.tower.device)
        if size:
            context[..., -size:, :] = self.tower.embed(ids.to(context.device))[0, 1 : 1 + size]
        return context

    def _ends(self, ids: Tensor) -> list[int]:
        ends: list[int] = self.tower.ends(ids).tolist()
        return ends

    def _check_room(self, names: tuple[str, ...], sizes: list[int], tokens: int) -> None:
        longest = max(sizes)
        room = self.tower.places - 2 - longest
        if tokens > room:
            name = names[sizes.index(longest)]
            fewer = f"context_tokens={room} or fewer" if room > 0 else "a method without a context"
            space = "cocoop, which begins with 4" if room >= 4 else "taskres"
            raise MethodError(
                f"start, context, class name and end must fit the text tower's {self.tower.places} "
                f"places, got {tokens} context tokens beside {longest} of «{name}.»: give the "
                "class a shorter name (in the column label of --dataset folder:TABLE.csv), or use "
                f"{fewer} (--space {space})"
            )


def texts_of(classes: ClassTexts) -> PromptSet:
    """The classes' texts; raises `MethodError` where there are none."""
    if classes.prompts is None:
        raise MethodError(
            "learned prompts need the text tower and the classes' names, and a bundle has features "
            "alone: use a data set with images, or a method that needs no more (--space taskres)"
        )
    return classes.prompts
