"""The interface of a few-shot tuning method.

Notation: b batch size, c classes, d feature dimension, n training images, s image side.

A method owns its trainable tensors and nothing else. It sees labels only in `backward` and
`prepare`, never changes the backbone's weights, and draws random numbers only from the generators
it is given. It computes its own gradients, so that a method whose update is not the gradient of a
single loss (gradient dropout) needs no special case in the trainer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone, BackboneError
from trainables.core.limits import broken_limits
from trainables.core.optim import OptimConfig
from trainables.core.protocols import Protocol
from trainables.data.prompts import PromptSet, PromptVariant

Preset = Literal["paper", "reference", "clean"]
"""`paper`: the paper's text. `reference`: the authors' code, including its bugs. `clean`: our
setting, with documented fixes."""

Tower = Literal["vit", "resnet", "other"]
"""Family of an image tower, see `Backbone.tower`."""


@dataclass(frozen=True)
class TaskFacts:
    """Facts about a task that determine the papers' settings and the search space."""

    dataset: str
    """Registry name of the data set; empty for a general setting."""
    shots: int
    """Labelled training images per class."""
    images: int
    """n, the number of training images."""
    tower: Tower = "vit"
    """Family of the image tower."""
    pixels: bool = True
    """Whether the data set has images, which can be cropped, rather than features."""
    protocol: Protocol = "few-shot"
    """Protocol of the evaluation."""
    after: tuple[str, ...] = ()
    """Registry names of the methods of earlier stages."""
    each: tuple[TaskFacts, ...] = ()
    """For several data sets or numbers of shots: the facts of each. Presets ignore this field."""


class MethodError(ValueError):
    """A method does not fit its backbone, classes or artifact. The message gives the rule, the
    value and the fix."""


@dataclass(frozen=True)
class MethodConfig:
    """Base class of all method configurations."""

    prompts: PromptVariant = "paper"
    """Variant of the data set's prompt templates that the class features are computed from."""

    def problems(self) -> list[str]:
        """One message per broken rule, with value and fix; empty if there is none."""
        return broken_limits(self)


class Recipe(NamedTuple):
    """Everything that a preset determines."""

    config: Any
    """An instance of the method's `Config`."""
    optim: OptimConfig
    """Optimiser and schedule."""
    crop_scale: float
    """Smallest share of the image's area that a random crop may take; 1 for no augmentation."""


@dataclass(frozen=True)
class Batch:
    """The data of one training step."""

    inputs: Tensor
    """Image features [b, d] or preprocessed images [b, 3, s, s], see `Method.input_kind`."""
    labels: Tensor
    """int64 [b], in 0..c-1."""
    zero_shot_logits: Tensor | None = None
    """[b, c]: the zero-shot model's logits for `inputs`, if the method `uses_zero_shot`."""


@dataclass(frozen=True)
class Schedule:
    """What a method may know about its training in advance."""

    learning_rates: tuple[float, ...]
    """One per optimiser step, in order."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""


@dataclass(frozen=True)
class ClassTexts:
    """The classes of a task."""

    features: Tensor
    """float32 [c, d]: one text feature per class, not normalised."""
    prompts: PromptSet | None = None
    """The texts; None if only their features are known, as in a feature bundle."""


@dataclass(frozen=True)
class BuildContext:
    """Everything besides its configuration that a method is built from."""

    backbone: Backbone
    """Frozen."""
    classes: ClassTexts
    """The classes that are trained on."""
    schedule: Schedule
    """The schedule of the training."""
    images: int = 0
    """n, the number of training images."""
    rng: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    """Draws random initial values, on the CPU."""


@dataclass(frozen=True)
class Head:
    """A linear classifier of image features: logits = (z + o) / |z + o| W^T + b, [b, c]."""

    weight: Tensor
    """W, float32 [c, d], multiplied by the logit scale."""
    bias: Tensor | None = None
    """b, float32 [c]; None for zero."""
    offset: Tensor | None = None
    """o, float32 [d]; None for zero."""


@dataclass(frozen=True)
class Support:
    """The whole training set, for computations before the first step."""

    labels: Tensor
    """int64 [n], in 0..c-1, on the backbone's device."""
    views: int
    """Number of augmented views of each image; 1 without augmentation."""
    features: Callable[[int], Tensor]
    """View 0..views-1 -> image features [n, d], not normalised, in the order of `labels`."""
    batches: Callable[[], Iterator[Batch]]
    """One epoch of training batches in random order."""


class Predictor(nn.Module, ABC):
    """Computes logits: all that evaluation and export need of a trained method."""

    input_kind: ClassVar[Literal["features", "images"]]
    """What `forward` takes."""
    changes_backbone: ClassVar[bool] = False
    """Whether `merged_backbone` can fold what is learned into the backbone for a later stage."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (see `input_kind`) -> logits [b, c], multiplied by the logit scale."""

    def merged_backbone(self) -> Backbone:
        """The backbone with what was learned folded in, under a new fingerprint.

        Raises `MethodError` if nothing that is learned belongs to the backbone.
        """
        raise MethodError(
            f"what {type(self).__name__} learns does not belong to the backbone, so that no other "
            "stage can follow: use it as the last stage"
        )

    def linear_head(self) -> Head | None:
        """The linear classifier that computes the same logits as `forward` on features of the
        backbone, or of `merged_backbone` if the method changes it. None, the default, if the
        method is more than a CLIP image tower and a linear classifier."""
        return None


class Method(Predictor):
    """A way to tune a frozen backbone on a few labelled images.

    The base class keeps `config` and `backbone`.
    """

    name: ClassVar[str]
    """Registry name."""
    Config: ClassVar[type[MethodConfig]]
    """Class of its configurations."""
    training_free: ClassVar[bool] = False
    """Whether there is nothing to train because `prepare` computes everything."""
    is_zero_shot_at_init: ClassVar[bool] = True
    """Whether the untrained method equals the zero-shot model."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        """For `build`, which has checked the configuration. Raises `MethodError` or
        `BackboneError` if configuration, backbone and classes do not fit."""
        super().__init__()
        self.config = config
        self.backbone = context.backbone

    @classmethod
    @abstractmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The settings of the preset `name` for a task."""

    @classmethod
    def build(cls, config: Any, context: BuildContext) -> Self:
        """An untrained method; `config` is an instance of `cls.Config`.

        Raises `MethodError` with every broken rule.
        """
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        try:
            return cls(config, context)
        except BackboneError as error:
            raise MethodError(str(error)) from error

    @abstractmethod
    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """Sets `.grad` of every trainable tensor; returns scalars, including `train/loss`."""

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """The tensors that the optimiser updates, by name, in a fixed order; may be empty."""

    @abstractmethod
    def set_classes(self, classes: ClassTexts) -> None:
        """Switches to other classes after training. What was learned is kept unless it belongs to
        single classes."""

    @property
    def uses_zero_shot(self) -> bool:
        """Whether `backward` needs `Batch.zero_shot_logits`."""
        return False

    def prepare(self, support: Support) -> None:
        """Called once before the first step and the first `forward`, unless `load_artifact` or
        `load_state_dict` restores the method. Does nothing by default."""

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Called after the last step of every epoch, from 1 to `epochs`. Does nothing by
        default."""

    def forecast(self) -> dict[str, float]:
        """Scalars known before training, e.g. the flip budget."""
        return {}

    @property
    def is_idle(self) -> bool:
        """Whether training with Adam provably leaves the model as it is."""
        return False

    def warnings(self) -> list[str]:
        """Sentences to show before training, e.g. that no bit can flip."""
        return []

    def progress(self) -> dict[str, float]:
        """Scalars about the learned tensors after an epoch, e.g. the number of flipped bits."""
        return {}

    @abstractmethod
    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What was learned, without optimiser state: tensors for a safetensors file, and its
        string metadata, including `format` and `format_version`."""

    @abstractmethod
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Restores an `artifact`; raises `MethodError` for damage or another format."""
