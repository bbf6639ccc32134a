"""The test images that a report looks at: who said what of them, draw by draw."""

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
    """One sheet, and the models that were trained on one data set with one number of shots."""

    sheet: PredictionTable
    """Images and their truth."""
    dataset: str
    """What was trained on."""
    shots: int
    """With how many images a class."""
    draws: Mapping[Label, tuple[ModelPredictions, ...]]
    """What was said, by label; draw by draw, in the same order for each."""

    @property
    def name(self) -> str:
        """In a row of a table, or in a title."""
        where = place_name(self.dataset, self.sheet.target)
        return f"{where}{_PARTS[self.sheet.part]}, {self.shots} shot{'s' * (self.shots > 1)}"


def place_name(dataset: str, target: str) -> str:
    """What was judged, and what it was trained on where that is another."""
    names = [PurePath(n.partition(":")[2]).name if ":" in n else n for n in (dataset, target)]
    return names[1] if dataset == target else f"{names[0]} → {names[1]}"


def places(sheets: Sequence[PredictionTable]) -> list[EvaluatedEpisode]:
    """All of them, in the order of the sheets."""
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
    """The one that figures are drawn of: the first with the most shots."""
    return max(found, key=lambda place: place.shots)


def chosen_note(found: Sequence[EvaluatedEpisode]) -> str:
    """Says which one is shown, where there are others; else empty."""
    if len(found) == 1:
        return ""
    return (
        f"The figure is of {shown_episode(found).name}: the first of {len(found)} rows that were "
        "judged, among those with the most shots."
    )


def unseen_section(source: Source) -> Section | None:
    """Why files on single test images cannot be read; None if they can, or without an
    evaluation."""
    notes = list(source.images_problems)
    if not notes:
        return None
    if not source.sheets:
        notes.append(
            "What was right and wrong, classes, confusion and calibration are therefore not shown; "
            "the test split is not read again for them."
        )
    return Section("images", "Test images", tuple(notes))
