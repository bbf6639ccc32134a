"""CLIP-LoRA: low-rank changes of both encoders (Zanella and Ben Ayed 2024, arXiv:2405.18541).

Notation: A [r, i], B [o, r], s as in `low_rank.py`; c classes, d feature dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import Backbone, BackboneError
from trainables.methods.artifacts import TensorArtifact, described
from trainables.methods.autograd import LossMethod
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Tower,
)
from trainables.methods.low_rank import Branch, Dropout, Encoder, Matrix, Site, attach, sites
from trainables.methods.tuned_texts import TunedTexts
from trainables.optim import OptimConfig

Encoders = Literal["image", "text", "both"]
Scaling = Literal["rank", "root"]

STEPS_PER_SHOT = 500
"""Training steps for each labelled image of a class, whatever the number of classes."""


@dataclass(frozen=True)
class ClipLoraConfig(MethodConfig):
    """Which matrices get a branch, and how strong it is."""

    encoders: Encoders = "both"
    """Whose matrices: the `image` encoder's, which must be a transformer, the `text` encoder's,
    or those of `both`."""
    matrices: str = "q,k,v"
    """Some of q, k, v, o (attention), up and down (MLP), with commas between them."""
    rank: int = 2
    """r."""
    lora_alpha: float = 1.0
    """The numerator of s."""
    scaling: Scaling = "rank"
    """s is alpha / r by `rank`, as LoRA defines it, and alpha / sqrt(r) by `root`, as CLIP-LoRA's
    released code has it (loralib/layers.py)."""
    dropout: float = 0.25
    """Share of a branch's inputs that are zero in a training step, drawn anew for each branch."""

    @property
    def names(self) -> tuple[Matrix, ...]:
        """`matrices` one by one, in the order of `Matrix`."""
        asked = self.matrices.split(",")
        return tuple(matrix for matrix in get_args(Matrix) if matrix in asked)

    @property
    def scale(self) -> float:
        """s."""
        return self.lora_alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        for name, kind in (("encoders", Encoders), ("scaling", Scaling)):
            if getattr(self, name) not in get_args(kind):
                found.append(f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")
        if sorted(self.names) != sorted(self.matrices.split(",")):
            known = ",".join(get_args(Matrix))
            found.append(
                f"matrices must be some of {known}, each once, got {self.matrices!r}: "
                "use e.g. 'q,k,v'"
            )
        if self.rank < 1:
            found.append(f"rank must be at least 1, got {self.rank}: use e.g. 2")
        if not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            found.append(f"lora_alpha must be positive and finite, got {self.lora_alpha}: use 1")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout must lie in 0..1, below 1, got {self.dropout}: use e.g. 0.25")
        return found


class ClipLora(TensorArtifact, LossMethod):
    """logits = exp(logit_scale) cos(z, t), where both z and t come from encoders with W + s B A in
    place of W.

    It reads images even where only the text encoder is tuned. The released code has 100 in place
    of exp(logit_scale) and trains in float16 with gradient scaling.
    """

    Config: ClassVar[type[MethodConfig]] = ClipLoraConfig
    input_kind: ClassVar[Literal["features", "images"]] = "images"
    changes_backbone: ClassVar[bool] = True

    def __init__(
        self,
        config: ClipLoraConfig,
        backbone: Backbone,
        classes: ClassTexts,
        where: list[Site],
        rng: torch.Generator,
    ) -> None:
        """`where`: the matrices that get a branch; `rng` draws the first A."""
        super().__init__()
        self.config, self._backbone = config, backbone
        scale = {"scale": repr(config.scale)}
        self.description = described("clip-lora", backbone.fingerprint) | scale
        self.downs, self.ups = nn.ParameterDict(), nn.ParameterDict()
        self._dropout = Dropout(config.dropout)
        self._branches: dict[Site, Branch] = {}
        for site in where:
            weight = site.of(backbone.model.get_parameter(site.parameter))
            rows, columns = weight.shape
            # Kaiming's uniform with a = sqrt(5), as in the code: U(-1, 1) / sqrt(i).
            first = torch.empty(config.rank, columns).uniform_(-1, 1, generator=rng)
            down = nn.Parameter(first.div_(math.sqrt(columns)).to(weight.device))
            up = nn.Parameter(torch.zeros(rows, config.rank, device=weight.device))
            self.downs[site.name], self.ups[site.name] = down, up
            self._branches[site] = Branch(down, up, config.scale, self._dropout)
        # Not a submodule: its tensors are the backbone's and this method's.
        self._tuned = backbone.changed({})
        attach(self._tuned.model, self._branches)
        self._texts: Callable[[], Tensor]
        self.set_classes(classes)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The published settings, which are the same for all data sets.

        `reference` scales by the root of the rank, as only the code does. `clean` describes the
        classes by the data set's own template instead of «a photo of a {}.». A ResNet has no
        matrices of this kind, so that its text encoder is tuned alone.
        """
        del dataset
        config = ClipLoraConfig(
            prompts="single" if name == "clean" else "photo",
            encoders="both" if tower == "vit" else "text",
            scaling="root" if name == "reference" else "rank",
        )
        optim = OptimConfig(
            lr=2e-4,
            epochs=1,
            batch_size=32,
            weight_decay=1e-2,
            optimiser="adamw",
            decay="step",
            min_lr=1e-6,
        )
        # Whole epochs, at least as many steps as published. The released loader also reads the
        # last incomplete batch of an epoch, which is dropped here as everywhere.
        epochs = -(-STEPS_PER_SHOT * shots // optim.steps_per_epoch(images))
        return Recipe(config, replace(optim, epochs=epochs), crop_scale=0.08)

    @classmethod
    def build(cls, config: ClipLoraConfig, material: BuildContext) -> Self:
        """See `Method.build`; refuses encoders that are not made of plain transformer blocks."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        backbone = material.backbone
        encoders: tuple[Encoder, ...] = ("image", "text")
        where: list[Site] = []
        for encoder in encoders:
            if config.encoders not in (encoder, "both"):
                continue
            own = sites(backbone.model, encoder, config.names)
            if not own:
                raise MethodError(
                    f"encoders={config.encoders!r} needs a transformer of plain blocks as "
                    f"{encoder} encoder, {backbone.name} ({backbone.tower}) has none: use "
                    + ("encoders='text', or a ViT" if encoder == "image" else "another backbone")
                )
            where += own
        return cls(config, backbone, material.classes, where, material.rng)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [b, 3, s, s] -> logits [b, c]."""
        features: Tensor = self._tuned.visual(inputs)
        unit = functional.normalize(features.float(), dim=-1)
        texts = functional.normalize(self._texts(), dim=-1)
        logits: Tensor = self._backbone.logit_scale.detach() * unit @ texts.T
        return logits

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """The mean cross entropy, with dropout in both encoders."""
        with self._dropout.drawing(rng, batch.inputs.device):
            return {"train/loss": functional.cross_entropy(self(batch.inputs), batch.labels)}

    def set_classes(self, classes: ClassTexts) -> None:
        """The branches stay, and the text encoder's change other classes' features too."""
        texts = [b for site, b in self._branches.items() if not site.block.startswith("visual.")]
        if not texts:
            fixed = classes.features.detach()
            self._texts = lambda: fixed
            return
        if classes.prompts is None:
            raise MethodError(
                f"encoders={self.config.encoders!r} needs the texts of the classes, got only "
                "their features: use encoders='image', or a data set with class names"
            )
        tensors = [tensor for b in texts for tensor in (b.down, b.up)]
        try:
            self._texts = TunedTexts(self._tuned, classes.prompts, tensors).features
        except BackboneError as error:
            raise MethodError(f"encoders={self.config.encoders!r}: {error}") from error

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Length of all changes s B A over that of the weights they change."""
        changes = torch.stack([b.change().square().sum() for b in self._branches.values()])
        model = self._backbone.model
        weights = [site.of(model.get_parameter(site.parameter)) for site in self._branches]
        whole = torch.stack([weight.square().sum() for weight in weights])
        return {"lora/change": (changes.sum() / whole.sum()).sqrt().item()}

    @torch.no_grad()
    def merged_backbone(self) -> Backbone:
        """Both encoders with W + s B A in place of W."""
        weights: dict[str, Tensor] = {}
        for site, branch in self._branches.items():
            whole = self._backbone.model.get_parameter(site.parameter)
            site.of(weights.setdefault(site.parameter, whole.clone())).add_(branch.change())
        return self._backbone.changed(weights)

    @torch.no_grad()
    def linear_head(self) -> Head:
        """The tuned text features."""
        texts = functional.normalize(self._texts(), dim=-1)
        return Head(self._backbone.logit_scale.detach() * texts)

    def learned(self) -> dict[str, Tensor]:
        """A and B of every matrix; s is part of the description."""
        downs = {f"{name}/A": down for name, down in self.downs.items()}
        return downs | {f"{name}/B": up for name, up in self.ups.items()}
