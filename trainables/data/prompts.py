"""Prompt templates: each data set's, once, with the variants in which paper and code differ.

Notation: c classes, d feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

PromptVariant = Literal["paper", "reference", "clean", "single", "photo", "ensemble", "diverse"]
"""Whose texts describe the classes.

`paper`: TaskRes, table 7 (seven templates on ImageNet); `_` in a class name read as a space.
`reference`: TaskRes's released code: an eighth ImageNet template, Food101 without its article, and
class names fed raw, so that the tokenizer sees `_` as a separate token.
`single`: R-AMT, text and code: one template per data set, names lower-cased with `_` as a space.
`photo`: CLIP-LoRA, and MaPLe's code for VPT: «a photo of a {}.» whatever the data set.
`ensemble`: Tip-Adapter's code and its successors: seven templates on ImageNet, with each text's
feature scaled to unit length before their mean, else those of `single`.
`diverse`: PromptSRC's code: the same 60 templates on every data set.
`clean`: `paper`, with each text's feature scaled to unit length before the mean over templates.
"""


@dataclass(frozen=True)
class PromptSet:
    """The texts of each class, and how their features become one vector per class."""

    class_names: tuple[str, ...]
    """As written in the texts."""
    templates: tuple[str, ...]
    """Each with one `{}` for the class name."""
    normalise_each: bool = False
    """Whether each text's feature is scaled to unit length before the mean over templates."""
    given: tuple[tuple[str, ...], ...] = ()
    """Texts that the data set provides instead of templates: one row per class, of one or more."""

    def texts(self) -> list[list[str]]:
        """Return one list per class: its given texts, or one text per template."""
        if self.given:
            return [list(row) for row in self.given]
        return [[t.format(name) for t in self.templates] for name in self.class_names]

    def of_classes(self, classes: Sequence[int]) -> PromptSet:
        """Return the texts of some classes, in this order."""
        names = tuple(self.class_names[label] for label in classes)
        given = tuple(self.given[label] for label in classes) if self.given else ()
        return PromptSet(names, self.templates, self.normalise_each, given)


PHOTO = "a photo of a {}."

SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""CLIP's selected ImageNet templates, as TaskRes lists them."""

SIXTY = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
)
"""Of CLIP's 80 ImageNet templates, the 60 that PromptSRC uses."""

TEMPLATES: dict[str, str] = {
    "imagenet": PHOTO,
    "imagenet_v2": PHOTO,
    "imagenet_sketch": PHOTO,
    "imagenet_a": PHOTO,
    "imagenet_r": PHOTO,
    "caltech101": PHOTO,
    "stanford_cars": PHOTO,
    "sun397": PHOTO,
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
    "digits": "a photo of the digit {}.",
    "digits-rotated": "a photo of the digit {}.",
}
"""The one template of each data set in both papers' released code."""


def prompt_templates(dataset: str, variant: PromptVariant) -> tuple[str, ...]:
    """Return the templates of `dataset`: «a photo of a {}.» if it is not listed in `TEMPLATES`."""
    if variant == "photo":
        return (PHOTO,)
    if variant == "diverse":
        return SIXTY
    if variant != "single" and dataset.startswith("imagenet"):
        return (*SEVEN, PHOTO) if variant == "reference" else SEVEN
    if variant in ("paper", "clean") and dataset == "food101":
        return ("a photo of a {}, a type of food.",)
    return (TEMPLATES.get(dataset, PHOTO),)


def prompt_set(
    dataset: str,
    class_names: Sequence[str],
    variant: PromptVariant,
    given: Sequence[Sequence[str]] = (),
) -> PromptSet:
    """Return the prompts of `dataset` (a registry name) for its raw `class_names`.

    `given` texts, one row per class, replace the templates in every variant. Raises `ValueError`
    for an unknown variant.
    """
    if variant not in get_args(PromptVariant):
        known = ", ".join(get_args(PromptVariant))
        raise ValueError(f"prompts must be one of {known}; got {variant!r}")
    names = tuple(class_names)
    if variant != "reference":
        names = tuple(name.replace("_", " ") for name in names)
    if variant == "single":  # CLIP's own tokenizer lower-cases anyway
        names = tuple(name.lower() for name in names)
    return PromptSet(
        names,
        () if given else prompt_templates(dataset, variant),
        normalise_each=variant in ("clean", "ensemble"),
        given=tuple(tuple(row) for row in given),
    )


class TextEncoder(Protocol):
    """The part of a backbone that encodes texts."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 [t, d], not normalised."""


def class_features(backbone: TextEncoder, prompts: PromptSet) -> Tensor:
    """Return float32 [c, d]: the mean of each class's text features, not normalised.

    Texts are encoded 256 at a time to bound memory.
    """
    texts = [text for row in prompts.texts() for text in row]
    features = torch.cat(
        [backbone.encode_text(texts[i : i + 256]) for i in range(0, len(texts), 256)]
    )
    return merged(features, prompts)


def merged(features: Tensor, prompts: PromptSet) -> Tensor:
    """Features of all texts, class by class, [t, d] -> one vector per class, [c, d]."""
    if prompts.normalise_each:
        features = functional.normalize(features, dim=-1)
    sizes = [len(row) for row in prompts.texts()]
    return torch.stack([part.mean(dim=0) for part in features.split(sizes)])
