"""Tip-Adapter-F: the cache with trained keys (Zhang et al., ECCV 2022, arXiv:2207.09519)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainables.methods.base import MethodConfig, Preset, Recipe, Tower
from trainables.methods.key_cache import KeyCache, cache_problems, first_weights
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class TipAdapterFConfig(MethodConfig):
    """How loud the cache is, and how near an image must be; in training and after it.

    The authors train with first values and choose others on the validation set afterwards.
    """

    alpha: float = 1.0
    """Weight of the cache beside the zero-shot model."""
    beta: float = 5.5
    """Sharpness: how fast a key's say falls with its distance."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        return super().problems() + cache_problems(self.alpha, self.beta)


class TipAdapterF(KeyCache):
    """A cache whose keys start as the training images' features and are trained."""

    Config: ClassVar[type[MethodConfig]] = TipAdapterFConfig
    kind: ClassVar[str] = "tip-adapter-f"
    learns_keys: ClassVar[bool] = True

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """AdamW with a large eps (the authors' weights are of half precision) and PyTorch's own
        weight decay, a cosine that moves at every step. The code keeps the epoch that is best on
        the test set, which its authors call a mistake: no preset does."""
        del shots, images, tower
        config = TipAdapterFConfig(prompts="clean")
        if name == "reference":
            config = TipAdapterFConfig("clean", *first_weights(dataset))
        optim = OptimConfig(
            lr=1e-3,
            epochs=100 if dataset == "eurosat" else 20,
            batch_size=256,
            weight_decay=1e-2,
            optimiser="adamw",
            eps=1e-4,
            decay="step",
        )
        return Recipe(config, optim, crop_scale=0.5)
