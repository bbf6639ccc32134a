"""The interface of a search space.

A space turns an Optuna trial into a `TrialConfig`, and it is the only thing that does: the same
`suggest` samples a new trial, rebuilds a stored one (`FrozenTrial`), completes one that a crash cut
short, and is tested with a `FixedTrial`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from trainables.methods.base import Preset
from trainables.methods.registry import METHODS
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class TaskFacts:
    """The facts about a task that decide what is worth varying, and what the papers' setting is."""

    dataset: str
    """Registry name of the data set."""
    shots: int
    """Labelled training images a class."""
    images: int
    """Training images in all."""
    tower: Literal["vit", "resnet", "other"]
    """Family of the image tower."""
    pixels: bool = True
    """Whether there are images, which can be cropped; else there are features only."""


class Space(Protocol):
    """Implementations hold no state but their `TaskFacts`."""

    @property
    def name(self) -> str:
        """Registry name."""

    @property
    def paper(self) -> TrialConfig:
        """The paper's setting: trial 0 of every sweep."""

    @property
    def paper_parameters(self) -> dict[str, float | int | str | bool]:
        """The parameters with which `suggest` returns `paper`."""

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One point of the space."""


def preset_trial(method: str, preset: Preset, setting: TaskFacts) -> TrialConfig:
    """A method's preset for this task."""
    config, optim, crop_scale = METHODS[method].preset(
        preset,
        dataset=setting.dataset,
        shots=setting.shots,
        images=setting.images,
        tower=setting.tower,
    )
    return TrialConfig(method, preset, config, optim, crop_scale)
