"""The tables and figures of a paper, read from its TOML file.

A table is a grid: its rows are configurations, its other dimensions are backbones, data sets,
numbers of shots and measures. Accuracies are in per cent. All published numbers were measured with
the weights of OpenAI's CLIP and the draws of CoOp.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from annotated_types import MinLen

from trainables.core.protocols import Protocol
from trainables.core.records import Count, Positive, RecordError, from_plain
from trainables.data.registry import BASE_TASKS
from trainables.fields import Value

PAPERS = ("taskres", "rmt", "baselines")
"""Names of the papers, each with a file: TaskRes, R-AMT, and later methods on the same
benchmarks."""

Measure = Literal[
    "accuracy",
    "gain",
    "sparsity",
    "size",
    "parameters",
    "residual-mean",
    "residual-median",
    "transfer-difficulty",
    "wrong-to-right",
    "right-to-wrong",
    "train-minutes",
    "train-speed",
    "test-speed",
    "mask-iou",
    "layer-change",
    "layer-sparsity",
]
"""What a number measures.

`accuracy` (per cent); `gain` over the zero-shot row (points); `sparsity`: share of masked elements
that are dropped (per cent); `size` of the learned artifact (MiB); `parameters`: learned ones
(millions); `residual-mean`, `residual-median` of the absolute learned residual;
`transfer-difficulty`: (1 / number of classes) / zero-shot accuracy; `wrong-to-right`,
`right-to-wrong`: test images, against the zero-shot row; `train-minutes`: duration of the training;
`train-speed`, `test-speed` (images per second); `mask-iou`: overlap of the dropped elements of two
trainings; `layer-change`, `layer-sparsity`: mean change of the scores, and sparsity, per group of
layers.
"""

Columns = Literal["shots", "datasets", "backbones", "measures"]
"""The dimension of a table that its columns show."""

Average = Literal["none", "mean", "targets"]
"""How a table averages over data sets: not at all, over all of them, or over all but the source
that was trained on. In base-to-new, the harmonic mean is that of the two averages."""

AVERAGE = "average"
"""Name of the average among the values of `Published`."""


@dataclass(frozen=True)
class Published:
    """Numbers that the paper prints in one row, for one backbone, number of shots and measure."""

    values: Annotated[Mapping[str, float], MinLen(1)]
    """Numbers by data set; `average` is the printed average."""
    shots: Positive | None = None
    """Training images per class; may be omitted if the row has only one, or none (zero-shot)."""
    backbone: str = ""
    """Architecture; may be omitted if the row has only one."""
    part: Literal["", "base", "new", "harmonic"] = ""
    """Part of the classes in base-to-new; empty for other protocols."""
    measure: Measure = "accuracy"
    """What the numbers measure."""
    deviations: Mapping[str, float] = field(default_factory=dict)
    """Printed deviations over seeds, by data set."""


@dataclass(frozen=True)
class Row:
    """A row of a table: one configuration."""

    name: str
    """Name in the paper."""
    method: str = ""
    """A space of `search.run`, e.g. `taskres` or `enhanced-base+taskres`; empty if the row has
    published numbers only."""
    preset: str = "paper"
    """The preset that `settings` changes."""
    settings: Mapping[str, Value] = field(default_factory=dict)
    """Fixed fields, named as in `--set`."""
    backbones: tuple[str, ...] = ()
    """Backbones of the table that the row has; empty for all."""
    datasets: tuple[str, ...] = ()
    """Data sets of the table that the row has; empty for all."""
    shots: tuple[Positive, ...] = ()
    """Numbers of shots of the table that the row has; empty for all."""
    published: tuple[Published, ...] = ()
    """The paper's numbers."""
    why: str = ""
    """Why nothing can be trained for this row."""
    compare: bool = False
    """Whether reports of sweeps show the row beside their results."""


@dataclass(frozen=True)
class Table:
    """A table or a figure."""

    caption: str
    """Content of the table, in our words."""
    columns: Columns
    """The dimension that the columns show; the others form blocks of rows."""
    backbones: Annotated[tuple[str, ...], MinLen(1)]
    """Architectures, as named by open_clip."""
    datasets: Annotated[tuple[str, ...], MinLen(1)]
    """Data sets; for domain generalisation the source, then its shifts."""
    rows: Annotated[tuple[Row, ...], MinLen(1)]
    """The configurations."""
    shots: Annotated[tuple[Positive, ...], MinLen(1)]
    """Training images per class."""
    seeds: Annotated[tuple[Count, ...], MinLen(1)] = (1, 2, 3)
    """Few-shot draws, over which numbers are averaged."""
    protocol: Protocol = "few-shot"
    """Protocol of the evaluation."""
    measures: Annotated[tuple[Measure, ...], MinLen(1)] = ("accuracy",)
    """What is measured."""
    average: Average = "none"
    """How numbers are averaged over data sets."""
    page: Count = 0
    """Page of the paper; 0 if unknown."""
    note: str = ""
    """Remark for readers."""


@dataclass(frozen=True)
class Paper:
    """A paper."""

    title: str
    """Its title."""
    authors: str
    """Its authors."""
    short: str
    """The name of its method, by which reports refer to the paper."""
    source: str
    """Where it was published."""
    tables: Mapping[str, Table]
    """Tables and figures by name, e.g. `table-4`, in the order of the file."""


@cache
def papers() -> Mapping[str, Paper]:
    """Return all papers by name; raises `RecordError` for an invalid file."""
    folder = files("search.papers")
    return {
        name: read_paper(folder.joinpath(f"{name}.toml").read_text(encoding="utf-8"), name)
        for name in PAPERS
    }


def read_paper(text: str, name: str) -> Paper:
    """Parse a paper's file. Raises `RecordError`, which names file, field and rule."""
    try:
        paper = from_plain(Paper, tomllib.loads(text))
        tables = {key: _expanded(table) for key, table in paper.tables.items()}
        for key, table in tables.items():
            _check(table, f"tables.{key}")
    except tomllib.TOMLDecodeError as error:
        raise RecordError(f"{name}.toml", f"must be valid TOML ({error})") from None
    except RecordError as error:
        raise error.inside(f"{name}.toml") from None
    return replace(paper, tables=tables)


def _expanded(table: Table) -> Table:
    """Return the table with `all11` replaced by the eleven data sets."""
    rows = tuple(replace(row, datasets=_all(row.datasets)) for row in table.rows)
    return replace(table, datasets=_all(table.datasets), rows=rows)


def _all(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for name in names for n in (BASE_TASKS if name == "all11" else (name,)))


def _check(table: Table, where: str) -> None:
    """Raise `RecordError` if rows and table contradict each other."""
    names = [row.name for row in table.rows]
    for name in names:
        if names.count(name) > 1:
            raise RecordError(f"{where}.rows", f"must have different names, got {name!r} twice")
    alone = {"mask-iou", "layer-change", "layer-sparsity"} & {*table.measures}
    if alone and len(table.measures) > 1:
        raise RecordError(f"{where}.measures", f"must have {min(alone)} alone")
    if table.average == "targets" and table.protocol not in _TARGETS:
        raise RecordError(f"{where}.average", f"must be mean or none for {table.protocol}")
    for number, row in enumerate(table.rows):
        _check_row(table, row, f"{where}.rows[{number}]")


_TARGETS = ("domain-generalization", "cross-dataset")


def _check_row(table: Table, row: Row, where: str) -> None:
    if bool(row.method) == bool(row.why):
        raise RecordError(where, f"must have either a method or a reason (why): '{row.name}'")
    for name in ("backbones", "datasets", "shots"):
        extra = [value for value in getattr(row, name) if value not in getattr(table, name)]
        if extra:
            raise RecordError(f"{where}.{name}", f"must be of the table's, got {extra[0]!r}")
    for place, own in enumerate(row.published):
        at = f"{where}.published[{place}]"
        known = {*(row.datasets or table.datasets), AVERAGE}
        if unknown := {*own.values, *own.deviations} - known:
            raise RecordError(f"{at}.values", f"must be of the row's data sets, got {min(unknown)}")
        backbones = row.backbones or table.backbones
        if own.backbone not in backbones and (own.backbone or len(backbones) > 1):
            raise RecordError(f"{at}.backbone", f"must be one of {', '.join(backbones)}")
        shots = row.shots or table.shots
        if own.shots is not None and own.shots not in shots:
            raise RecordError(f"{at}.shots", f"must be one of {', '.join(map(str, shots))}")
        if own.shots is None and len(shots) > 1 and row.method != "zero-shot":
            raise RecordError(f"{at}.shots", "is missing")
        if own.measure not in table.measures:
            raise RecordError(f"{at}.measure", f"must be one of {', '.join(table.measures)}")
        if (table.protocol == "base-to-new") != bool(own.part):
            raise RecordError(f"{at}.part", "must be given for base-to-new, and only there")
