"""Data sets that are made from another one: their base, and other names or prompt templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainables.core.text import shortened, unprintable
from trainables.data.base import DataError, Dataset, Permit, Split, SplitName, check_class_names
from trainables.data.prompts import PHOTO, PromptSet, PromptVariant


@dataclass(frozen=True)
class DerivedDataset:
    """A data set with another one's images, whose name it keeps: a permit for that one's test split
    opens its own. Implements `Dataset`; subclasses override what differs."""

    whole: Dataset
    """The data set that it is derived from."""

    @property
    def name(self) -> str:
        """As in `whole`."""
        return self.whole.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """As in `whole`."""
        return self.whole.class_names

    @property
    def flip(self) -> bool:
        """As in `whole`."""
        return self.whole.flip

    @property
    def caveats(self) -> tuple[str, ...]:
        """As in `whole`."""
        return self.whole.caveats

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """As in `whole`."""
        return self.whole.prompts(variant)

    def split(self, name: SplitName) -> Split:
        """As in `whole`."""
        return self.whole.split(name)

    def sealed_split(self, permit: Permit) -> Split:
        """As in `whole`."""
        return self.whole.sealed_split(permit)


def described(dataset: Dataset, names: Sequence[str], templates: Sequence[str]) -> Dataset:
    """Return the data set with other class names, other templates, or both; raises `DataError`.

    `names` has one name per label. Several templates are an ensemble. How names are written and
    features are averaged depends on the prompt variant, as for the data set's own.
    """
    if not names and not templates:
        return dataset
    known = dataset.class_names
    if names and len(names) != len(known):
        shown = ", ".join((*known[:5], *(("…",) if len(known) > 5 else ())))
        raise DataError(
            f"--class-names must have one name per class of '{dataset.name}', in this order: "
            f"{shown} ({len(known)} classes), got {len(names)}. Correct the file."
        )
    check_class_names(names, "--class-names")
    for problem in filter(None, map(template_problem, templates)):
        raise DataError(problem)
    return _Described(dataset, tuple(names), tuple(templates))


def template_problem(template: str) -> str:
    """Why no text can be made from a prompt template; empty if it can."""
    if template.count("{}") != 1 or {"{", "}"} & {*template.replace("{}", "")}:
        return (
            "--prompt must have {} once, for the class name, and no other braces, got "
            f"'{shortened(template)}'. Use e.g. --prompt 'a photo of a {{}}.'"
        )
    if found := unprintable(template):
        return f"--prompt must be printable text, and '{shortened(template)}' contains {found}."
    return ""


@dataclass(frozen=True)
class _Described(DerivedDataset):
    """A data set with other texts."""

    names: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names or self.whole.class_names

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The original's texts, with the user's names and templates in their place."""
        found = self.whole.prompts(variant)
        return replace(
            found,
            class_names=self.names or found.class_names,
            templates=self.templates or found.templates or (PHOTO,),
            given=(),
        )
