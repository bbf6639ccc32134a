"""The numbers in the papers' files, checked against those that the papers print themselves."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from search.evaluation.statistics import harmonic
from search.papers.schema import AVERAGE, Published, Row, Table, papers

ROOT = Path(__file__).parents[3]


class Printed(NamedTuple):
    """Published numbers and their place."""

    place: str
    table: Table
    row: Row
    numbers: Published


PRINTED = [
    Printed(f"{name}/{key}, {row.name}, {numbers.shots or '-'} shots", table, row, numbers)
    for name, paper in papers().items()
    for key, table in paper.tables.items()
    for row in table.rows
    for numbers in row.published
]
WHOLE = [
    printed
    for printed in PRINTED
    if {*printed.numbers.values} == {*printed.table.datasets, AVERAGE}
    and len(printed.table.datasets) > 1
]
"""Rows with a number for every data set and their average."""


def test_the_documentation_states_how_many_numbers_are_stored() -> None:
    """A number that is lost on the way into a file would not fail any other test."""
    found = dict.fromkeys(papers(), 0)
    for printed in PRINTED:
        numbers = printed.numbers
        paper = printed.place.partition("/")[0]
        found[paper] += len(numbers.values) + len(numbers.deviations)
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    both = found["taskres"] + found["rmt"]
    stated = f"({found['taskres']} of TaskRes, {found['rmt']} of R-AMT)"
    assert f"{both} numbers are stored {stated}" in text
    assert len(WHOLE) >= 22


@pytest.mark.parametrize("printed", WHOLE, ids=lambda printed: printed.place)
def test_averages_are_those_of_the_row(printed: Printed) -> None:
    values = dict(printed.numbers.values)
    average = values.pop(AVERAGE)
    if printed.table.average == "targets":
        del values[printed.table.datasets[0]]
    assert statistics.fmean(values.values()) == pytest.approx(average, abs=0.0051)


@pytest.mark.parametrize(
    ("paper", "key", "name", "shots", "average"),
    [
        ("taskres", "table-8", "TaskRes", 1, 64.04),
        ("taskres", "table-8", "TaskRes", 16, 75.10),
        ("rmt", "table-1", "zero-shot CLIP", None, 65.23),
        ("rmt", "table-1", "CoOp", None, 79.90),
        ("rmt", "table-1", "CoOp + R-AMT", None, 83.16),
        ("rmt", "table-1", "Tip-Adapter-F", None, 81.24),
        ("rmt", "table-1", "Tip-Adapter-F + R-AMT", None, 84.37),
        ("rmt", "table-1", "R-AMT", None, 83.96),
        ("rmt", "table-16", "R-MMT", None, 83.39),
        ("rmt", "table-16", "R-PMT", None, 83.96),
    ],
)
def test_the_averages_of_the_main_rows(
    paper: str, key: str, name: str, shots: int | None, average: float
) -> None:
    (row,) = (row for row in papers()[paper].tables[key].rows if row.name == name)
    (numbers,) = (p for p in row.published if p.shots == shots)
    assert len(numbers.values) == 12
    assert numbers.values[AVERAGE] == average


HARMONICS = {
    f"{name}/{key}: {row.name}": found
    for name, paper in papers().items()
    for key, table in paper.tables.items()
    for row in table.rows
    if set(found := {p.part: p.values[AVERAGE] for p in row.published if p.part}) > {"harmonic"}
}


@pytest.mark.parametrize("row", HARMONICS)
def test_the_harmonic_mean_is_that_of_the_averages(row: str) -> None:
    found = HARMONICS[row]
    assert harmonic(found["base"], found["new"]) == pytest.approx(found["harmonic"], abs=0.0051)


def test_a_number_that_a_paper_prints_twice_is_the_same_twice() -> None:
    found: dict[tuple[object, ...], set[float]] = defaultdict(set)
    for printed in PRINTED:
        table, row, numbers = printed.table, printed.row, printed.numbers
        paper = printed.place.partition("/")[0]
        settings = tuple(sorted(row.settings.items()))
        backbone = numbers.backbone or (row.backbones or table.backbones)[0]
        shots = (
            None if row.method == "zero-shot" else numbers.shots or (row.shots or table.shots)[0]
        )
        setting = (paper, row.method, settings, backbone, shots, table.protocol)
        for dataset, value in numbers.values.items():
            # Averages over other data sets differ.
            over = table.datasets if dataset == AVERAGE else ()
            key = (*setting, over, numbers.part, numbers.measure, dataset)
            found[key].add(value)
    assert {key: values for key, values in found.items() if len(values) > 1} == {}
