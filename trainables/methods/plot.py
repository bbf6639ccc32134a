"""PLOT++: several prompts in both towers, compared by optimal transport (Chen et al., ICLR 2023,
arXiv:2210.01253; PLOT++ is its authors' version for ViTs, in their repository).

Notation: b batch size, c classes, s image side, d feature dimension, M and N prompts of the image
and of every class, k and m learned tokens of each, v and w widths of the image and the text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.image_tower import image_tower
from trainables.core.limits import Limit, PositiveInt, Share
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    MethodConfig,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.context import RANDOM_SPREAD, PromptWriter
from trainables.methods.deep_prompts import Remembered
from trainables.methods.recipes import DASSL_CROP_SCALE, token_optim
from trainables.methods.tensor_method import TensorMethod, mean_cross_entropy

SINKHORN_STEPS = 20
"""The released code takes up to 100 and stops when the mean change over the batch falls below 0.01,
so that an image's logits depend on its batch. With a fixed number they do not."""

_GENERAL = "a photo of a | this is a photo | this is picture of | one picture of a"
_OPENINGS = {
    "dtd": "a photo of a texture | this is a photo texture | this is a picture texture | "
    "one picture of a texture",
    "eurosat": "a centered satellite photo of | a centered satellite picture of | "
    "this is centered satellite photo of | one centered satellite photo of a",
    "fgvc_aircraft": "a photo of an aircraft | a picture of an aircraft | "
    "this is aircraft picture of | one picture of an aircraft",
    "food101": "a photo of a food | this is a food photo | this is food picture of | "
    "one picture of a food",
    # The code's third is "this is a", whose missing fourth word replaces the class name's first.
    "imagenet": "a photo of a | this is a photo | this is a picture | one picture of a",
    "oxford_flowers": "a photo of a flower | one picture of a flower | "
    "this is flower picture of | one picture of a flower",
    "oxford_pets": "a photo of a pet | one picture of a pet | this is pet picture of | "
    "one picture of a pet",
    "ucf101": "a photo of a person doing | this is a photo people doing | "
    "this is picture of people doing | one picture of a person doing",
}
"""Initial words of the released code by data set."""


@dataclass(frozen=True)
class PlotConfig(MethodConfig):
    """Numbers and initial values of the prompts, and the transport."""

    text_prompts: PositiveInt = 4
    """N, prompts of every class."""
    image_prompts: PositiveInt = 4
    """M, prompts of the image; the image is encoded once with each."""
    context_tokens: PositiveInt = 4
    """m, learned tokens of each text prompt."""
    image_tokens: PositiveInt = 2
    """k, learned tokens of each image prompt, before the first block."""
    init_words: str = _GENERAL
    """Words whose first m tokens are a text prompt's initial values; the others stay fixed before
    the class name. Separated by |, used in turn; empty to draw all at random."""
    entropy: Annotated[float, Limit("finite and at least 0.02", lambda x: x >= 0.02)] = 0.1
    """Weight of the plan's entropy in the transport, the code's `eps`; exp(-2 / entropy) must be a
    float32 above 0."""
    image_share: Share = 0.5
    """Share of the epochs, the first ones, that train the image prompts alone."""


class Plot(TensorMethod):
    """logits = exp(logit_scale) sum_mn T_mn cos(z_m, t_n), with M features of the image, N of each
    class, and the plan T of the entropic optimal transport between both (algorithm 1).

    No gradient flows through T. The released code first trains the image prompts alone, in a
    separate run, whose logits are the sum of these and of the mean features' cosine, and then both
    kinds in a second run. Here both are halves of one training, with one learning rate schedule.
    """

    name = "plot"
    Config = PlotConfig
    input_kind = "images"
    is_zero_shot_at_init = False
    joint: Tensor

    def __init__(self, config: PlotConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self._writer, rng = PromptWriter.of(self.backbone), context.rng
        self._tower = image_tower(self.backbone)
        words = islice(cycle(config.init_words.split("|")), config.text_prompts)
        starts = [self._writer.opening(config.context_tokens, w.strip(), rng) for w in words]
        self._fixed = [fixed for _, fixed in starts]
        self.context = nn.Parameter(torch.stack([first for first, _ in starts]))
        shape = (config.image_prompts, config.image_tokens, self._tower.width)
        drawn = RANDOM_SPREAD * torch.randn(shape, generator=rng)
        self.tokens = nn.Parameter(drawn.to(self.backbone.device))
        # Whether the text prompts are trained too; part of a checkpoint.
        self.register_buffer("joint", torch.tensor(config.image_share == 0))
        self.set_classes(context.classes)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The released configuration for ViTs: M = N = 4, image prompts of two tokens, as many text
        tokens as the data set's first words; SGD at 2e-3 in batches of 32, 50 epochs for each half.

        `clean` trains for at least `CLEAN_STEPS` steps.
        """
        words = _OPENINGS.get(facts.dataset, _GENERAL)
        tokens = len(words.partition("|")[0].split())
        config = PlotConfig(prompts="photo", context_tokens=tokens, init_words=words)
        optim = token_optim(name, facts, 2e-3, epochs=100, batch_size=32)
        return Recipe(config, optim, DASSL_CROP_SCALE)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._transported(self._images(inputs), self._texts(self.context.unbind()))

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Mean cross entropy; while the image prompts are trained alone, with the mean features'
        logits added."""
        images = self._images(batch.inputs)
        if self.joint:
            logits = self._transported(images, self._texts(self.context.unbind()))
            return {"train/loss": mean_cross_entropy(logits, batch.labels)}
        with torch.no_grad():
            texts = self._texts(self.context.unbind())
        image, text = (functional.normalize(f.mean(dim=0), dim=-1) for f in (images, texts))
        logits = self._transported(images, texts) + self.scale * image @ text.T
        # Every trainable tensor needs a gradient: that of the text prompts is 0.
        rest = 0 * self.context.sum()
        return {"train/loss": mean_cross_entropy(logits, batch.labels) + rest}

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Begins to train the text prompts once the image prompts had their share."""
        self.joint.fill_(epoch >= self.config.image_share * epochs)

    def set_classes(self, classes: ClassTexts) -> None:
        """Keeps all tokens, and inserts the new names into the prompts."""
        tower, tokens = self._writer.tower, self.config.context_tokens
        prompts = [self._writer.prompts(classes, tokens, fixed=fixed) for fixed in self._fixed]

        def features(contexts: Sequence[Tensor]) -> Tensor:
            pairs = zip(prompts, contexts, strict=True)
            return torch.stack([tower.encode(p.filled(own), p.ends) for p, own in pairs])

        self._texts = Remembered(features)

    def _images(self, inputs: Tensor) -> Tensor:
        """[b, 3, s, s] -> [M, b, d], not normalised."""
        return torch.stack([self._tower.encode(inputs, [own]) for own in self.tokens.unbind()])

    def _transported(self, images: Tensor, texts: Tensor) -> Tensor:
        """[M, b, d] and [N, c, d] -> logits [b, c]."""
        images, texts = functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1)
        cosines = torch.einsum("mbd,ncd->bcmn", images, texts)
        plan = transport_plan(cosines.detach(), self.config.entropy)
        return self.scale * (plan * cosines).sum(dim=(-1, -2))

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of the tokens in either tower."""
        return {
            "context/norm": self.context.norm(dim=-1).mean().item(),
            "tokens/norm": self.tokens.norm(dim=-1).mean().item(),
        }


def transport_plan(cosines: Tensor, entropy: float) -> Tensor:
    """Similarities [..., M, N] -> the plan [..., M, N] between uniform masses that minimises the
    cost 1 - cosine minus `entropy` times its entropy, by Sinkhorn's iterations."""
    rows, columns = cosines.shape[-2:]
    kernel = torch.exp((cosines - 1) / entropy)
    right = torch.ones_like(kernel[..., :1, :])
    for _ in range(SINKHORN_STEPS):
        left = 1 / (rows * (kernel * right).sum(dim=-1, keepdim=True))
        right = 1 / (columns * (kernel * left).sum(dim=-2, keepdim=True))
    return left * kernel * right
