"""Prompt templates: each data set's, once, with the variants in which paper and code differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptSet:
    """The texts of each class, and how their features are merged into one vector a class."""

    class_names: tuple[str, ...]
    """As they stand in the texts (after fix-ups)."""
    templates: tuple[str, ...]
    """Each with one `{}` for the class name."""
    normalise_each: bool = False
    """Whether each text's feature is scaled to unit length before the mean over templates."""

    def texts(self) -> list[list[str]]:
        """One list per class, one text per template."""
        return [[t.format(name) for t in self.templates] for name in self.class_names]
