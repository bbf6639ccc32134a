"""What CoOp and its relatives share: a context of learned vectors, and the classifier it makes.

Notation: b batch, c classes, d feature dimension, m context tokens, w the text tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import TensorArtifact, described
from trainables.methods.autograd import LossMethod
from trainables.methods.base import BuildContext, ClassTexts, Head, MethodConfig, MethodError
from trainables.methods.prompt_tokens import ClassPosition, PromptWriter


@dataclass(frozen=True)
class ContextConfig(MethodConfig):
    """The context: how long, what it begins with, whose it is, and where."""

    context_tokens: int = 16
    """m, how many vectors are learned in the place of tokens."""
    init_words: str = ""
    """Words whose embeddings are the first values, e.g. «a photo of a»; none: drawn at random."""
    class_specific: bool = False
    """A context of its own for every class (CSC), in place of one for all."""
    class_position: ClassPosition = "end"
    """Where the class name stands in the context."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if self.context_tokens < 1:
            found.append(f"context_tokens must be at least 1, got {self.context_tokens}: use 16")
        if self.class_position not in get_args(ClassPosition):
            known = ", ".join(get_args(ClassPosition))
            found.append(f"class_position must be one of {known}, got {self.class_position!r}")
        return found


class ContextMethod(TensorArtifact, LossMethod):
    """logits = exp(logit_scale) cos(z, g(context, class name)), g the frozen text tower.

    It reads image features, computed once: the image tower is not tuned. The released codes draw
    new crops in every epoch and encode them anew.
    """

    input_kind: ClassVar[Literal["features", "images"]] = "features"
    is_zero_shot_at_init: ClassVar[bool] = False
    kind: ClassVar[str]
    """Registry name."""
    scale: Tensor

    def __init__(self, config: ContextConfig, material: BuildContext) -> None:
        """Raises `MethodError` where config, backbone and classes do not fit."""
        super().__init__()
        backbone = material.backbone
        self._config = config
        position = {"class_position": config.class_position}
        self.description = described(self.kind, backbone.fingerprint) | position
        self._writer = PromptWriter.of(backbone)
        self._write(material.classes)
        self.register_buffer("scale", backbone.logit_scale.detach().clone(), persistent=False)
        # Words do not decide whose the context is, as they do in CoOp's code: every class's own
        # begins with the same ones.
        copies = len(material.classes.features) if config.class_specific else 0
        self.context = nn.Parameter(
            self._writer.context(config.context_tokens, config.init_words, material.rng, copies)
        )
        self._foreign: Tensor | None = None
        self._remembered: tuple[Tensor, Tensor] | None = None

    @classmethod
    def build(cls, config: ContextConfig, material: BuildContext) -> Self:
        """See `Method.build`."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        return cls(config, material)

    def classifier(self) -> Tensor:
        """[c, d]: every class's text feature at unit length.

        With gradients on it is computed anew, as a function of the context; with gradients off it
        is remembered together with the context that it was made from, so that no step and no
        loading, which change the values in place, can leave it behind.
        """
        if self._foreign is not None:
            return self._foreign
        if torch.is_grad_enabled():
            return self._classifier()
        if self._remembered is None or not torch.equal(self._remembered[0], self.context):
            self._remembered = self.context.detach().clone(), self._classifier()
        return self._remembered[1]

    def _classifier(self) -> Tensor:
        embeddings = self._prompts.filled(self.context)
        features = self._writer.tower.encode(embeddings, self._prompts.ends)
        return functional.normalize(features, dim=-1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        logits: Tensor = self.scale * functional.normalize(inputs, dim=-1) @ self.classifier().T
        return logits

    @torch.no_grad()
    def linear_head(self) -> Head:
        """The text features."""
        return Head(self.scale * self.classifier())

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """The context stays, with the new names in it; contexts of single classes are of no use to
        others, which get the zero-shot classifier."""
        if self._config.class_specific:
            self._foreign = functional.normalize(classes.features, dim=-1)
        else:
            self._write(classes)
        self._remembered = None

    def _write(self, classes: ClassTexts) -> None:
        config = self._config
        self._prompts = self._writer.prompts(classes, config.context_tokens, config.class_position)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of the context's vectors."""
        return {"context/norm": self.context.norm(dim=-1).mean().item()}
