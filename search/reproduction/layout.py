"""The paper's layout of a table: blocks of rows, with measured and published numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from search.papers.cells import ZERO_SHOT
from search.papers.schema import AVERAGE, Measure, Row
from search.reporting import document
from search.reproduction.comparison import Number, published_value
from search.reproduction.numbers import HALVES, Place, Values, at, averaged
from search.reproduction.plan import ReproductionPlan

_OWN_COLUMNS = frozenset({"layer-change", "layer-sparsity", "mask-iou"})
"""Measures whose columns are groups of layers, or pairs of data sets."""
_UNITS: dict[Measure, str] = {
    "accuracy": "accuracy (%)",
    "gain": "gain (points)",
    "sparsity": "sparsity (%)",
    "size": "size (MiB)",
    "parameters": "parameters (millions)",
    "residual-mean": "mean |x|",
    "residual-median": "median |x|",
    "transfer-difficulty": "transfer difficulty",
    "wrong-to-right": "wrong to right (images)",
    "right-to-wrong": "right to wrong (images)",
    "train-minutes": "training (minutes)",
    "train-speed": "training (images/s)",
    "test-speed": "testing (images/s)",
    "mask-iou": "overlap of dropped weights (IoU)",
    "layer-change": "mean |change of scores|",
    "layer-sparsity": "sparsity (%)",
}
_MARK = "*"


@dataclass(frozen=True)
class Block:
    """Rows that have the same values of all dimensions but the columns'."""

    title: str
    """These values; empty if the table has one block."""
    columns: tuple[str, ...]
    """Headings."""
    rows: Mapping[str, tuple[tuple[Place, Number], ...]]
    """One number per column, by name of the row."""


@dataclass(frozen=True)
class Reproduced:
    """A table with its measured numbers."""

    plan: ReproductionPlan
    """The plan."""
    blocks: tuple[Block, ...]
    """Blocks in the paper's order."""
    notes: tuple[str, ...]
    """Remarks below the table."""

    @property
    def numbers(self) -> list[tuple[Place, Number]]:
        """Return all numbers."""
        return [one for block in self.blocks for row in block.rows.values() for one in row]

    def tables(self) -> list[document.Table]:
        """Return the blocks as tables of text."""
        return [_text(self, block, place) for place, block in enumerate(self.blocks, start=1)]

    def csv(self) -> str:
        """Return a CSV file with one line per number."""
        stream = io.StringIO()
        write = csv.writer(stream, lineterminator="\n").writerow
        write(_COLUMNS)
        for place, number in self.numbers:
            low, high = number.interval or (None, None)
            found = (number.mean, number.deviation, low, high, number.published, number.difference)
            own = (place.row, place.backbone, place.dataset, place.shots, place.measure, place.part)
            marks = (number.excludes, number.is_comparable)
            write([*own, len(number.values), *map(_plain, found), *map(int, marks)])
        return stream.getvalue()


_COLUMNS = (
    *("row", "backbone", "dataset", "shots", "measure", "part", "n", "mean", "deviation", "low"),
    *("high", "published", "difference", "excluded", "comparable"),
)


def lay_out(plan: ReproductionPlan, values: Values, failures: Sequence[str]) -> Reproduced:
    """Arrange these values in the paper's layout."""
    table = plan.table
    columns = "datasets" if {*table.measures} & _OWN_COLUMNS else table.columns
    measures = [(m, part) for m in table.measures for part in _parts(plan, m)]
    datasets = _columns_of_data(plan, values)
    across = {
        "shots": [str(n) for n in table.shots],
        "datasets": datasets,
        "backbones": list(table.backbones),
        "measures": [_named(*one) for one in measures],
    }
    dimensions: dict[str, Sequence[Any]] = {
        "backbones": table.backbones,
        "shots": table.shots,
        "datasets": datasets,
        "measures": measures,
    }
    others = [name for name in dimensions if name != columns]
    blocks = []
    for chosen in product(*(dimensions[name] for name in others)):
        fixed = dict(zip(others, chosen, strict=True))
        rows = {}
        for row in table.rows:
            numbers = []
            for value in dimensions[columns]:
                place = _place(row.name, fixed | {columns: value})
                numbers.append((place, _number(plan, row, place, values)))
            if any(n.values or n.published is not None for _, n in numbers):
                rows[row.name] = tuple(numbers)
        words = [_words(n, v) for n, v in fixed.items() if len(dimensions[n]) > 1]
        if rows:
            blocks.append(Block(", ".join(words), tuple(across[columns]), rows))
    return Reproduced(plan, tuple(blocks), tuple(_notes(plan, blocks, failures)))


def _parts(plan: ReproductionPlan, measure: Measure) -> Sequence[str]:
    halves = plan.table.protocol == "base-to-new" and measure == "accuracy"
    return (*HALVES, "harmonic") if halves else ("",)


def _columns_of_data(plan: ReproductionPlan, values: Values) -> list[str]:
    """Return the data sets and their average; the groups for layers, and also pairs for
    overlaps."""
    table = plan.table
    if {*table.measures} & _OWN_COLUMNS:
        return list(dict.fromkeys(p.dataset for p in values if p.measure in table.measures))
    average = [AVERAGE] if averaged(table) else []
    if table.columns == "shots":  # blocks, of which the average is the paper's
        return [*average, *table.datasets]
    return [*table.datasets, *average]


def _place(row: str, fixed: Mapping[str, Any]) -> Place:
    measure, part = fixed["measures"]
    return Place(row, fixed["backbones"], fixed["datasets"], fixed["shots"], measure, part)


def _number(plan: ReproductionPlan, row: Row, place: Place, values: Values) -> Number:
    whole = plan.request.whole
    own = next((r for r in whole.rows if r.name == row.name), row)
    skipped = 1 if whole.average == "targets" else 0
    datasets = [n for n in whole.datasets[skipped:] if n in plan.table.datasets]
    found = published_value(whole, own, place, datasets, whole.datasets[skipped:])
    if plan.request.embedded:
        found = None
    why = plan.incomparable.get(place.backbone, "")
    is_comparable = why in ("", "weights not verified")
    measured = tuple(at(values, place).values())
    return Number(measured, found, is_comparable, row.method != ZERO_SHOT)


def _words(dimension: str, value: Any) -> str:
    match dimension:
        case "shots":
            return f"{value} shot{'s' * (value != 1)}"
        case "measures":
            return _named(*value)
    return str(value)


def unit(place: Place) -> str:
    """Name the measure at a place, with its unit."""
    return _named(place.measure, place.part)


def _named(measure: Measure, part: str) -> str:
    words = {"": "", "base": ", base classes", "new": ", new classes"}
    return _UNITS[measure] + words.get(part, ", harmonic mean")


def _notes(plan: ReproductionPlan, blocks: Sequence[Block], failures: Sequence[str]) -> list[str]:
    request, table = plan.request, plan.table
    placed = [one for block in blocks for row in block.rows.values() for one in row]
    numbers = [n for _, n in placed]
    counts = {len(n.values) for n in numbers if n.depends_on_draws}
    found = []
    units = "pairs of trainings" if "mask-iou" in table.measures else "draws"
    if counts:
        found.append(
            f"Mean ± sample standard deviation over {max(counts)} {units}"
            + (" (fewer where noted in brackets)." if len(counts) > 1 else ".")
        )
    if any(n.excludes for n in numbers):
        found.append(f"{_MARK} The 95 % interval over draws excludes the published number.")
    for backbone, why in plan.incomparable.items():
        if why == "weights not verified":
            found.append(f"{backbone}: weights not verified, they may differ from OpenAI's.")
        elif why:
            found.append(f"{backbone}: not comparable with the published numbers: {why}.")
    averages = [n for p, n in placed if p.dataset == AVERAGE and n.values]
    if averages and (names := averaged(table)):
        whole = request.table if request.embedded else request.whole
        missing = [name for name in whole.datasets if name not in table.datasets]
        without = f", without {', '.join(missing)}" if missing else ""
        found.append(f"Averages are over {', '.join(names)}{without}.")
    if not blocks:
        found.append("No numbers: the trainings learned nothing that this table measures.")
    found += [f"Skipped: {what} ({why.rstrip('.')})." for what, why in plan.left_out.items()]
    found += [f"Failed: {line.rstrip('.')}." for line in failures]
    if failures:
        found.append("Averages need every data set. Repeat what failed with --retry-failed.")
    found += [
        f"{row.name}: not reproduced, {row.why.rstrip('.')}." for row in table.rows if row.why
    ]
    return found + ([table.note] if table.note else [])


def _text(reproduced: Reproduced, block: Block, place: int) -> document.Table:
    request = reproduced.plan.request
    counts = {len(n.values) for _, n in reproduced.numbers if n.depends_on_draws}
    most = max(counts, default=0)
    rows: list[tuple[str, ...]] = []
    for name, numbers in block.rows.items():
        cells = [number for _, number in numbers]
        if any(n.values for n in cells):
            rows.append((name, "measured", *(_shown(at, n, most) for at, n in numbers)))
        if any(n.published is not None for n in cells):
            rows.append((name, "published", *(_digits(a, n.published) for a, n in numbers)))
        if any(n.difference is not None for n in cells):
            rows.append((name, "difference", *(_signed(a, n) for a, n in numbers)))
    several = len(reproduced.blocks) > 1
    title = f"{request.paper.short}, {request.name.partition('/')[2].replace('-', ' ')}: "
    title += request.table.caption + (f" ({block.title})" if block.title else "")
    name = request.name.replace("/", "-") + (f"-{place}" if several else "")
    return document.Table(name, title, ("row", "number", *block.columns), tuple(rows), labels=2)


def _shown(place: Place, number: Number, most: int) -> str:
    text = _digits(place, number.mean)
    if number.deviation is not None:
        text += f" ± {_digits(place, number.deviation)}"
    fewer = number.depends_on_draws and len(number.values) < most
    return text + f" ({len(number.values)})" * fewer


def _signed(place: Place, number: Number) -> str:
    if number.difference is None:
        return "-"
    sign = "+" if number.difference >= 0 else "-"
    return sign + _digits(place, abs(number.difference)) + _MARK * number.excludes


def _digits(place: Place, value: float | None) -> str:
    if value is None:
        return "-"
    if place.measure in ("accuracy", "gain", "sparsity"):
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
