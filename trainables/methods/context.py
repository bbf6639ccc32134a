"""Learned prompts: class names as tokens, a context of learned vectors beside them, and the
classifier that both give.

Notation: b batch size, c classes, d feature dimension, m context tokens, l positions and w width of
the text tower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.text_tower import TextTower, text_tower
from trainables.core.limits import PositiveInt
from trainables.data.prompts import PromptSet
from trainables.methods.base import BuildContext, ClassTexts, Head, MethodConfig, MethodError
from trainables.methods.tensor_method import TensorMethod

ClassPosition = Literal["end", "middle", "front"]
"""Position of the class name: after the context, between its halves, or before it."""

RANDOM_SPREAD = 0.02
"""Standard deviation of contexts that are drawn at random (CoOp, section 4.1)."""


@dataclass(frozen=True)
class GappedPrompts:
    """One prompt per class: embeddings of the fixed tokens, and gaps for the learned ones."""

    embeddings: Tensor
    """[c, l, w], without positions; zero in the gaps."""
    gaps: Tensor
    """int64 [c, m]: positions of the context's tokens, in order."""
    ends: Tensor
    """int64 [c]: positions of the end-of-text tokens."""

    def filled(self, context: Tensor) -> Tensor:
        """Context [..., m, w] -> embeddings [..., c, l, w]. The axis before m, if any, has length c
        for one context per class, or 1 for a shared one."""
        shape = torch.broadcast_shapes(context.shape[:-2], self.ends.shape)
        width = context.shape[-1]
        return self.embeddings.expand(*shape, -1, -1).scatter(
            -2,
            self.gaps[..., None].expand(*shape, -1, width),
            context.expand(*shape, -1, -1),
        )


@dataclass(frozen=True)
class PromptWriter:
    """Builds the prompts of classes for a text tower."""

    tower: TextTower
    """The backbone's."""
    tokenizer: Callable[[list[str]], Tensor]
    """Texts -> int64 ids [t, l]: start, body, end, zeros; see `Backbone.tokenizer`."""

    @classmethod
    def of(cls, backbone: Backbone) -> PromptWriter:
        """Raises `BackboneError` if there is no text tower that accepts embeddings."""
        return cls(text_tower(backbone), backbone.tokenizer)

    def prompts(
        self,
        classes: ClassTexts,
        tokens: int,
        position: ClassPosition = "end",
        fixed: Tensor | None = None,
    ) -> GappedPrompts:
        """Prompts of the form "[context] name.", with `tokens` gaps for the context. `fixed`, int64
        [f], are ids of tokens that precede every name and belong to it.

        Raises `MethodError` if a name leaves no room for them, or if only the classes' features
        are known.

        Tokens are counted, not words: the released codes count the words of their templates.
        """
        names = texts_of(classes).class_names
        rows = self.tokenizer([f"{name}." for name in names])
        more = 0 if fixed is None else len(fixed)
        sizes = [size - 1 + more for size in self._ends(rows)]
        # The full stop may merge with a name's own ("Jr.."): names are also counted alone.
        lengths = [end - 1 + more for end in self._ends(self.tokenizer(list(names)))]
        self._check_room(names, sizes, tokens)
        if fixed is not None and more:
            start, rest = rows[:, :1], rows[:, 1:-more]
            rows = torch.cat([start, fixed.expand(len(rows), -1), rest], dim=1)
        ids = torch.zeros_like(rows)
        gaps = torch.empty(len(names), tokens, dtype=torch.int64)
        before = {"end": tokens, "middle": tokens // 2, "front": 0}[position]
        for row, size, length, new, places in zip(rows, sizes, lengths, ids, gaps, strict=True):
            name = 1 + before  # position of its first token
            after = name + length
            places[:before] = torch.arange(1, name)
            places[before:] = torch.arange(after, after + tokens - before)
            # The rest, in order: start, name, full stop, end.
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
        """Initial values: [m, w], or [copies, m, w].

        Drawn from N(0, 0.02^2); or the embeddings of `words`, after zeros if there are fewer than
        `tokens` (as in ProGrad's code). Raises `MethodError` if there are more.
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

    def opening(self, tokens: int, words: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Initial values [m, w] that begin `words`, and the ids of the remaining tokens, which stay
        fixed before the names (as in MaPLe's code). Raises `MethodError` for fewer tokens than
        `tokens`; without words, the values are drawn as in `context`."""
        ids = self.tokenizer([words])
        size = self._ends(ids)[0] - 1
        if words and size < tokens:
            raise MethodError(
                f"init_words must have at least context_tokens ({tokens}) tokens, got {size} in "
                f"{words!r}: use context_tokens={size}, more words, or none"
            )
        first = self.context(tokens, "", rng)
        if words:
            first = self.tower.embed(ids.to(self.tower.device))[0, 1 : 1 + tokens].clone()
        return first, ids[0, 1 + tokens : 1 + max(size, tokens)]

    def _ends(self, ids: Tensor) -> list[int]:
        ends: list[int] = self.tower.ends(ids).tolist()
        return ends

    def _check_room(self, names: tuple[str, ...], sizes: list[int], tokens: int) -> None:
        longest = max(sizes)
        room = self.tower.places - 2 - longest
        if tokens > room:
            name = names[sizes.index(longest)]
            fewer = f"context_tokens={room} or fewer" if room > 0 else "a method without a context"
            space = "cocoop, which starts with 4" if room >= 4 else "taskres"
            raise MethodError(
                f"start, context, class name and end must fit the text tower's {self.tower.places} "
                f"positions, got {tokens} context tokens beside {longest} of '{name}.': give the "
                "class a shorter name (in the column label of --dataset folder:TABLE.csv), or use "
                f"{fewer} (--space {space})"
            )


def texts_of(classes: ClassTexts) -> PromptSet:
    """The classes' texts; raises `MethodError` if there are none."""
    if classes.prompts is None:
        raise MethodError(
            "learned prompts need the text tower and the classes' names, but a bundle has only "
            "features: use a data set with images, or a method on features (--space taskres)"
        )
    return classes.prompts


@dataclass(frozen=True)
class ContextConfig(MethodConfig):
    """Length, initial values, scope and position of the context."""

    context_tokens: PositiveInt = 16
    """m, the number of learned vectors."""
    init_words: str = ""
    """Words whose embeddings are the initial values, e.g. "a photo of a"; empty to draw them at
    random."""
    class_specific: bool = False
    """Whether every class has its own context (CSC), rather than all sharing one."""
    class_position: ClassPosition = "end"
    """Position of the class name in the context."""


class ContextMethod(TensorMethod):
    """logits = exp(logit_scale) cos(z, g(context, class name)), g the frozen text tower.

    It reads image features, computed once, since the image tower is not tuned. The released codes
    encode new crops in every epoch.
    """

    input_kind = "features"
    is_zero_shot_at_init = False

    def __init__(self, config: ContextConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self._writer = PromptWriter.of(self.backbone)
        self._write(context.classes)
        # Unlike in CoOp's code, initial words and a context per class can be combined.
        copies = len(context.classes.features) if config.class_specific else 0
        self.context = nn.Parameter(
            self._writer.context(config.context_tokens, config.init_words, context.rng, copies)
        )
        self._zero_shot: Tensor | None = None
        self._cached: tuple[Tensor, Tensor] | None = None

    def metadata(self) -> dict[str, str]:
        """With the position of the class name."""
        return super().metadata() | {"class_position": self.config.class_position}

    def classifier(self) -> Tensor:
        """[c, d]: every class's text feature at unit length.

        Without gradients, the result is cached together with the context it was computed from:
        steps and loading change the values in place.
        """
        if self._zero_shot is not None:
            return self._zero_shot
        if torch.is_grad_enabled():
            return self._classifier()
        if self._cached is None or not torch.equal(self._cached[0], self.context):
            self._cached = self.context.detach().clone(), self._classifier()
        return self._cached[1]

    def _classifier(self) -> Tensor:
        embeddings = self._prompts.filled(self.context)
        features = self._writer.tower.encode(embeddings, self._prompts.ends)
        return functional.normalize(features, dim=-1)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.scale * functional.normalize(inputs, dim=-1) @ self.classifier().T
        return logits

    @torch.no_grad()
    def linear_head(self) -> Head:
        return Head(self.scale * self.classifier())

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """A shared context is kept, with the new names in the prompts. Contexts of single classes
        are useless for others, which get the zero-shot classifier."""
        if self.config.class_specific:
            self._zero_shot = functional.normalize(classes.features, dim=-1)
        else:
            self._write(classes)
        self._cached = None

    def _write(self, classes: ClassTexts) -> None:
        config = self.config
        self._prompts = self._writer.prompts(classes, config.context_tokens, config.class_position)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of the context's vectors."""
        return {"context/norm": self.context.norm(dim=-1).mean().item()}
