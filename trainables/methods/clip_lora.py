"""CLIP-LoRA: low-rank changes of both encoders (Zanella and Ben Ayed 2024, arXiv:2405.18541).

Notation: A [r, i], B [o, r], s as in `low_rank.py`; b batch size, c classes, d feature dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.text_tower import AT_ONCE, text_tower
from trainables.core.limits import PositiveFloat, PositiveInt, ShareBelowOne
from trainables.core.optim import OptimConfig
from trainables.data.prompts import PromptSet
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.low_rank import Branch, Dropout, Encoder, Matrix, Site, attach, sites
from trainables.methods.recipes import DASSL_CROP_SCALE
from trainables.methods.tensor_method import TensorMethod

Encoders = Literal["image", "text", "both"]
Scaling = Literal["rank", "root"]

STEPS_PER_SHOT = 500
"""Training steps per shot, whatever the number of classes."""


@dataclass(frozen=True)
class ClipLoraConfig(MethodConfig):
    """The matrices that have a branch, and its strength."""

    encoders: Encoders = "both"
    """The encoders that are adapted; an `image` encoder must be a transformer."""
    matrices: str = "q,k,v"
    """Some of q, k, v, o (attention), up and down (MLP), separated by commas."""
    rank: PositiveInt = 2
    """r."""
    lora_alpha: PositiveFloat = 1.0
    """Numerator of s."""
    scaling: Scaling = "rank"
    """`rank`: s is alpha / r, as LoRA defines it. `root`: s is alpha / sqrt(r), as in CLIP-LoRA's
    released code (loralib/layers.py)."""
    dropout: ShareBelowOne = 0.25
    """Probability of a branch's inputs being zeroed in a training step, drawn per branch."""

    @property
    def names(self) -> tuple[Matrix, ...]:
        """`matrices` as a tuple, in the order of `Matrix`."""
        asked = self.matrices.split(",")
        return tuple(matrix for matrix in get_args(Matrix) if matrix in asked)

    @property
    def scale(self) -> float:
        """s."""
        return self.lora_alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    def problems(self) -> list[str]:
        found = super().problems()
        if sorted(self.names) != sorted(self.matrices.split(",")):
            known = ",".join(get_args(Matrix))
            found.append(
                f"matrices must be some of {known}, each once, got {self.matrices!r}: "
                "use e.g. 'q,k,v'"
            )
        return found


class ClipLora(TensorMethod):
    """logits = exp(logit_scale) cos(z, t), with W + s B A in place of W in the encoders of z and t.

    It reads images even if only the text encoder is adapted. The released code uses 100 for
    exp(logit_scale) and trains in float16 with gradient scaling.
    """

    name = "clip-lora"
    Config = ClipLoraConfig
    input_kind = "images"
    changes_backbone = True

    def __init__(self, config: ClipLoraConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.downs, self.ups = nn.ParameterDict(), nn.ParameterDict()
        self._dropout = Dropout(config.dropout)
        self._branches: dict[Site, Branch] = {}
        for site in _sites(config, self.backbone):
            weight = site.of(self.backbone.model.get_parameter(site.parameter))
            rows, columns = weight.shape
            # Kaiming's uniform with a = sqrt(5), as in the code: U(-1, 1) / sqrt(i).
            first = torch.empty(config.rank, columns).uniform_(-1, 1, generator=context.rng)
            down = nn.Parameter(first.div_(math.sqrt(columns)).to(weight.device))
            up = nn.Parameter(torch.zeros(rows, config.rank, device=weight.device))
            self.downs[site.name], self.ups[site.name] = down, up
            self._branches[site] = Branch(down, up, config.scale, self._dropout)
        # Not a submodule: its tensors are the backbone's and this method's.
        self._tuned = self.backbone.changed({})
        attach(self._tuned.model, self._branches)
        self._texts: Callable[[], Tensor]
        self.set_classes(context.classes)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The published settings, which are the same for all data sets.

        `reference` scales by the root of the rank, as only the code does. `clean` uses the data
        set's own template instead of "a photo of a {}.". A ResNet has no such matrices, so only
        its text encoder is adapted.
        """
        config = ClipLoraConfig(
            prompts="single" if name == "clean" else "photo",
            encoders="both" if facts.tower == "vit" else "text",
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
        # Whole epochs, with at least as many steps as published. The released loader also uses the
        # last incomplete batch of an epoch, which is dropped here.
        epochs = -(-STEPS_PER_SHOT * facts.shots // optim.steps_per_epoch(facts.images))
        return Recipe(config, replace(optim, epochs=epochs), DASSL_CROP_SCALE)

    def metadata(self) -> dict[str, str]:
        """With the scale of the branches."""
        return super().metadata() | {"scale": repr(self.config.scale)}

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self._tuned.visual(inputs)
        unit = functional.normalize(features.float(), dim=-1)
        texts = functional.normalize(self._texts(), dim=-1)
        logits: Tensor = self.scale * unit @ texts.T
        return logits

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """The mean cross entropy, with dropout in both encoders."""
        with self._dropout.drawing(rng, batch.inputs.device):
            return {"train/loss": functional.cross_entropy(self(batch.inputs), batch.labels)}

    def set_classes(self, classes: ClassTexts) -> None:
        """The branches are kept; those of the text encoder change other classes' features, too."""
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
            self._texts = _TunedTexts(self._tuned, classes.prompts, tensors).features
        except BackboneError as error:
            raise MethodError(f"encoders={self.config.encoders!r}: {error}") from error

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Length of all changes s B A relative to the weights they change."""
        changes = torch.stack([b.change().square().sum() for b in self._branches.values()])
        model = self.backbone.model
        weights = [site.of(model.get_parameter(site.parameter)) for site in self._branches]
        whole = torch.stack([weight.square().sum() for weight in weights])
        return {"lora/change": (changes.sum() / whole.sum()).sqrt().item()}

    @torch.no_grad()
    def merged_backbone(self) -> Backbone:
        """Both encoders with W + s B A in place of W."""
        weights: dict[str, Tensor] = {}
        for site, branch in self._branches.items():
            whole = self.backbone.model.get_parameter(site.parameter)
            site.of(weights.setdefault(site.parameter, whole.clone())).add_(branch.change())
        return self.backbone.changed(weights)

    @torch.no_grad()
    def linear_head(self) -> Head:
        texts = functional.normalize(self._texts(), dim=-1)
        return Head(self.scale * texts)

    def learned(self) -> dict[str, Tensor]:
        """A and B of every matrix."""
        downs = {f"{name}/A": down for name, down in self.downs.items()}
        return downs | {f"{name}/B": up for name, up in self.ups.items()}


def _sites(config: ClipLoraConfig, backbone: Backbone) -> list[Site]:
    """The matrices that get a branch; raises `MethodError` for encoders that do not consist of
    plain transformer blocks."""
    encoders: tuple[Encoder, ...] = ("image", "text")
    found: list[Site] = []
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
        found += own
    return found


class _TunedTexts:
    """The features of some classes, computed by a text tower that contains trainable tensors."""

    def __init__(self, backbone: Backbone, prompts: PromptSet, tensors: Sequence[Tensor]) -> None:
        """`tensors`: all tensors that the features depend on and that may change.

        Raises `BackboneError` for a tower of an unknown kind.
        """
        self._tower = text_tower(backbone)
        rows = prompts.texts()
        ids = backbone.tokenizer([text for row in rows for text in row]).to(backbone.device)
        self._sizes = [len(row) for row in rows]
        self._normalise_each = prompts.normalise_each
        self._inputs, self._ends = self._tower.embed(ids), self._tower.ends(ids)
        self._tensors = tuple(tensors)
        self._cached: tuple[Tensor, Tensor] | None = None

    def features(self) -> Tensor:
        """float32 [c, d], not normalised. Without gradients, cached until one of the tensors
        changes."""
        if torch.is_grad_enabled():
            return self._encode()
        # Compared by value: PyTorch's fused optimisers do not increase a tensor's version.
        state = torch.cat([tensor.detach().flatten() for tensor in self._tensors])
        if self._cached is None or not torch.equal(self._cached[0], state):
            self._cached = state, self._encode()
        return self._cached[1]

    def _encode(self) -> Tensor:
        """Merged as in `class_features`. All activations are kept for the gradient: a second
        forward pass would draw other dropout."""
        parts = zip(self._inputs.split(AT_ONCE), self._ends.split(AT_ONCE), strict=True)
        features = torch.cat([self._tower.encode(*part).float() for part in parts])
        if self._normalise_each:
            features = functional.normalize(features, dim=-1)
        return torch.stack([part.mean(dim=0) for part in features.split(self._sizes)])
