"""Predictions on test images, grouped by the training data and shots of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import get_args

from search.core.task import Part
from search.evaluation.predictions import ModelPredictions, PredictionTable
from search.evaluation.record import Label
from search.reporting.section import Section
from search.reporting.source import Source

_PARTS: dict[Part, str] = {
    "test": "",
    "base": ", base classes",
    "new": ", new classes",
    "shift": ", shifted",
    "target": "",
}


@dataclass(frozen=True)
class EvaluatedEpisode:
    """A prediction table for models trained on one data set with one number of shots."""

    sheet: PredictionTable
    """Test images and their true classes."""
    dataset: str
    """Training data set."""
    shots: int
    """Training images per class."""
    draws: Mapping[Label, tuple[ModelPredictions, ...]]
    """Predictions by label, one per draw, in the same order of draws for every label."""

    @property
    def name(self) -> str:
        """Name in table rows and titles."""
        where = place_name(self.dataset, self.sheet.target)
        return f"{where}{_PARTS[self.sheet.part]}, {self.shots} shot{'s' * (self.shots > 1)}"


def place_name(dataset: str, target: str) -> str:
    """Return the name of the test data set, preceded by the training data set if it differs."""
    names = [PurePath(n.partition(":")[2]).name if ":" in n else n for n in (dataset, target)]
    return names[1] if dataset == target else f"{names[0]} → {names[1]}"


def places(sheets: Sequence[PredictionTable]) -> list[EvaluatedEpisode]:
    """Return the evaluated episodes of all tables, in the order of the tables."""
    found = []
    for sheet in sheets:
        models: dict[tuple[str, int], dict[Label, list[ModelPredictions]]] = {}
        for answers in sheet.answers:
            draws = models.setdefault((answers.dataset, answers.shots), {})
            draws.setdefault(answers.label, []).append(answers)
        for (dataset, shots), draws in models.items():
            ordered = {
                label: tuple(sorted(draws[label], key=lambda a: a.seed))
                for label in get_args(Label)
                if label in draws
            }
            found.append(EvaluatedEpisode(sheet, dataset, shots, ordered))
    return found


def shown_episode(found: Sequence[EvaluatedEpisode]) -> EvaluatedEpisode:
    """Return the episode that figures show: the first of those with the most shots."""
    return max(found, key=lambda place: place.shots)


def chosen_note(found: Sequence[EvaluatedEpisode]) -> str:
    """Return a note on which episode the figure shows; empty if there is only one."""
    if len(found) == 1:
        return ""
    return (
        f"The figure shows {shown_episode(found).name}: of {len(found)} evaluated rows, the first "
        "of those with the most shots."
    )


def unseen_section(source: Source) -> Section | None:
    """Explain why the files with predictions or examples cannot be read; None if they can, or if
    there is no evaluation."""
    notes = list(source.images_problems)
    if not notes:
        return None
    if not source.sheets:
        notes.append(
            "The sections on right and wrong predictions, classes, confusion and calibration are "
            "therefore missing; the test split is not read again for them."
        )
    return Section("images", "Test images", tuple(notes))
