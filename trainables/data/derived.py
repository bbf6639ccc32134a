"""Base of data sets that are made from another one."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.data.base import Dataset, Permit, Split, SplitName
from trainables.data.prompts import PromptSet, PromptVariant


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
