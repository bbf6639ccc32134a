"""The interface of a few-shot tuning method.

Notation: b batch, c classes, d feature dimension, n training images, s image side.

A method owns its trainable tensors and nothing else. It never sees labels outside `backward` and
`prepare`, never touches the backbone's weights, draws random numbers from the generator that it is
handed and no other, and does its own backward pass, so that a method whose gradient is not that of
one loss (gradient dropout) needs no special case in the trainer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone
from trainables.data.prompts import PromptSet, PromptVariant
from trainables.optim import OptimConfig

Preset = Literal["paper", "reference", "clean"]
"""`paper`: the text. `reference`: the authors' code, bug for bug. `clean`: documented mends."""


Tower = Literal["vit", "resnet", "other"]
"""The family of an image tower, see `Backbone.tower`."""


class MethodError(ValueError):
    """A method and its surroundings do not fit: rule, value and remedy in one message."""


@dataclass(frozen=True)
class MethodConfig:
    """Base of all method configurations; every field is documented where it is declared."""

    prompts: PromptVariant = "paper"
    """Which variant of the data set's prompt templates the class features are made from."""

    def problems(self) -> list[str]:
        """Every broken rule, with value and remedy; empty when all is well."""
        if self.prompts in get_args(PromptVariant):
            return []
        return [f"prompts must be one of {get_args(PromptVariant)}, got {self.prompts!r}"]


class Recipe(NamedTuple):
    """A preset: everything about a training that the paper, its code or we have settled."""

    config: Any
    """An instance of the method's `Config`."""
    optim: OptimConfig
    """How long and how fast."""
    crop_scale: float
    """Smallest share of the image's area a random crop may take; 1 = no augmentation."""


@dataclass(frozen=True)
class Batch:
    """One training step's data."""

    inputs: Tensor
    """Image features [b, d] or preprocessed images [b, 3, s, s], as the method `input_kind`."""
    labels: Tensor
    """int64 [b], in 0..c-1."""
    zero_shot_logits: Tensor | None = None
    """[b, c]: the zero-shot model on the same views; given when the method `uses_zero_shot`."""


@dataclass(frozen=True)
class Schedule:
    """What a method may know of the training that lies ahead."""

    learning_rates: tuple[float, ...]
    """One per optimiser step, in order."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""


@dataclass(frozen=True)
class ClassTexts:
    """The classes that are told apart."""

    features: Tensor
    """float32 [c, d], one text vector a class, not normalised."""
    prompts: PromptSet | None = None
    """The texts; None where only their features are at hand, as in a bundle."""


@dataclass(frozen=True)
class BuildContext:
    """What a method is built from."""

    backbone: Backbone
    """Frozen."""
    classes: ClassTexts
    """Those of the training."""
    schedule: Schedule
    """Of the training."""
    images: int = 0
    """n, the size of the training set."""
    rng: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    """For first values that are drawn at random: a generator on the CPU."""


@dataclass(frozen=True)
class Head:
    """A linear classifier of unit image features: logits = (z + o) / |z + o| W^T + b, [b, c]."""

    weight: Tensor
    """W, float32 [c, d], the logit scale multiplied in."""
    bias: Tensor | None = None
    """b, float32 [c]; None if it is zero."""
    offset: Tensor | None = None
    """o, float32 [d]; None if it is zero."""


@dataclass(frozen=True)
class Support:
    """The whole training set, for what a method computes once before its first step."""

    labels: Tensor
    """int64 [n], in 0..c-1, on the backbone's device."""
    views: int
    """How many different views of every image there are: 1 without augmentation."""
    features: Callable[[int], Tensor]
    """View 0..views-1 -> image features [n, d], not normalised, in the order of `labels`."""
    batches: Callable[[], Iterator[Batch]]
    """One epoch in random order, as a training reads it."""


class Method(nn.Module, ABC):
    """One way to tune a frozen backbone on a few labelled images."""

    Config: ClassVar[type[MethodConfig]]
    input_kind: ClassVar[Literal["features", "images"]]
    changes_backbone: ClassVar[bool] = False
    """Whether `merged_backbone` can fold what is learned into the backbone, for another stage."""
    training_free: ClassVar[bool] = False
    """Whether there is nothing to train: `prepare` does it all."""
    is_zero_shot_at_init: ClassVar[bool] = True
    """Whether the untrained method is the zero-shot model."""

    @classmethod
    @abstractmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The settings for `dataset` (a registry name) at `shots` images a class.

        `images` is the size n of the training set; `tower` the family of the image tower.
        """

    @classmethod
    @abstractmethod
    def build(cls, config: Any, material: BuildContext) -> Self:
        """A fresh method; `config` is an instance of `cls.Config`. Raises `MethodError` where
        config, backbone and classes do not fit."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (see `input_kind`) -> logits [b, c], already multiplied by the logit scale."""

    @abstractmethod
    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Fills `.grad` of every trainable tensor; returns scalars, `train/loss` among them."""

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """The tensors that the optimiser moves, by name, in a fixed order; may be empty."""

    @abstractmethod
    def set_classes(self, classes: ClassTexts) -> None:
        """Tell other classes apart from now on. What was learned stays as far as it does not
        belong to single classes. Training is over."""

    @property
    def uses_zero_shot(self) -> bool:
        """Whether `backward` needs `Batch.zero_shot_logits`."""
        return False

    def prepare(self, support: Support) -> None:
        """Called once, before the first step and whatever `forward` is asked; never for a method
        that `load_artifact` or `load_state_dict` fills. Nothing by default."""

    def merged_backbone(self) -> Backbone:
        """The backbone with what was learned folded in, under a fingerprint of its own. Raises
        `MethodError` where nothing of it belongs to the backbone."""
        raise MethodError(
            f"what {type(self).__name__} learns does not belong to the backbone, so that no other "
            "stage can follow: use it as the last one"
        )

    def linear_head(self) -> Head | None:
        """The linear classifier that says what `forward` says, on the features of the backbone, or
        of `merged_backbone` if the method changes it. None, the default, if the method
        computes more than a CLIP's image tower and a linear classifier."""
        return None

    def forecast(self) -> dict[str, float]:
        """Scalars known before training, e.g. the flip budget."""
        return {}

    def warnings(self) -> list[str]:
        """Sentences the user should read before training, e.g. that no bit can flip."""
        return []

    def progress(self) -> dict[str, float]:
        """Scalars about the learned tensors after an epoch, e.g. the number of flipped bits."""
        return {}

    @abstractmethod
    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What was learned, without optimiser state: tensors for a safetensors file, and its
        string metadata with `format` and `format_version`."""

    @abstractmethod
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """The inverse of `artifact`; raises `MethodError` for damage or another format."""
