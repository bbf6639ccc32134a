"""Tip-Adapter: the training set as a cache, training-free (Zhang et al., ECCV 2022,
arXiv:2207.09519)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainables.methods.base import MethodConfig, Preset, Recipe, Tower
from trainables.methods.key_cache import KeyCache, cache_problems, first_weights
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class TipAdapterConfig(MethodConfig):
    """How loud the cache is, and how near an image must be."""

    alpha: float = 1.0
    """Weight of the cache beside the zero-shot model."""
    beta: float = 5.5
    """Sharpness: how fast a key's say falls with its distance."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        return super().problems() + cache_problems(self.alpha, self.beta)


class TipAdapter(KeyCache):
    """A cache whose keys are the training images' features; nothing is trained."""

    Config: ClassVar[type[MethodConfig]] = TipAdapterConfig
    kind: ClassVar[str] = "tip-adapter"
    learns_keys: ClassVar[bool] = False
    training_free: ClassVar[bool] = True

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The paper's alpha and beta, which it states for ImageNet, or the code's first ones; both
        then choose on the validation set (the code's ImageNet script on the test set)."""
        del shots, images, tower
        config = TipAdapterConfig(prompts="clean")
        if name == "reference":
            config = TipAdapterConfig("clean", *first_weights(dataset))
        optim = OptimConfig(lr=1e-3, epochs=1, batch_size=256)  # nothing is trained by it
        return Recipe(config, optim, crop_scale=0.5)
