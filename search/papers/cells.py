"""The cells of a table: one training each, and its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search.papers.schema import Row, Table
from spaces.adjust import adjust
from spaces.base import Space
from spaces.declared import DeclaredSpace
from spaces.registry import find_space
from spaces.settings import Settings
from trainables.methods.base import TaskFacts
from trainables.trial import TrialConfig

ZERO_SHOT = "zero-shot"
"""The method that does not depend on training images: one cell per data set and backbone."""


@dataclass(frozen=True)
class Cell:
    """One training of a table."""

    row: str
    """Name of its row."""
    backbone: str
    """Architecture, as named in the paper's table."""
    dataset: str
    """Data set that it is trained on."""
    shots: int
    """Training images per class."""
    seed: int
    """Seed of the draw."""


def sources(table: Table) -> tuple[str, ...]:
    """Return the data sets of a table that are trained on."""
    return table.datasets if table.protocol in ("few-shot", "base-to-new") else table.datasets[:1]


def cells(table: Table) -> Iterator[Cell]:
    """Yield every training of a table, except those of rows that cannot be trained. Cells that
    share a backbone and a data set follow each other."""
    rows = [row for row in table.rows if row.method]
    for backbone in table.backbones:
        for dataset in sources(table):
            for row in rows:
                if not _has(row, backbone, dataset):
                    continue
                if row.method == ZERO_SHOT:
                    yield Cell(row.name, backbone, dataset, 1, table.seeds[0])
                    continue
                for shots in row.shots or table.shots:
                    for seed in table.seeds:
                        yield Cell(row.name, backbone, dataset, shots, seed)


def _has(row: Row, backbone: str, dataset: str) -> bool:
    return backbone in (row.backbones or (backbone,)) and dataset in (row.datasets or (dataset,))


def row_config(row: Row, facts: TaskFacts) -> TrialConfig:
    """Return the configuration of a row for a task. Raises `SpaceError` and `SettingsError`."""
    space: Space
    if row.method == ZERO_SHOT:  # nothing is searched: no space has it
        space = DeclaredSpace(facts, ZERO_SHOT, ZERO_SHOT, {})
    else:
        space = find_space(row.method).build(facts)
    return adjust(space, Settings(preset=row.preset, set=row.settings)).first
