"""The layout of a table: the order of rows and columns, and the notes."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from search.papers.schema import AVERAGE, Paper, Published, Row, Table
from search.reproduction.figures import figures_of
from search.reproduction.layout import Reproduced, lay_out
from search.reproduction.numbers import Place, Values
from search.reproduction.plan import ReproductionPlan
from search.reproduction.request import Request

PRINTED = Published({"dtd": 50.0, "eurosat": 60.0, AVERAGE: 55.0}, shots=1)
ROWS = (
    Row("zero-shot", "zero-shot", published=(Published({"dtd": 40.0, "eurosat": 30.0}),)),
    Row("TaskRes", "taskres", published=(PRINTED,)),
    Row("CALIP", why="its code is not public", published=(PRINTED,)),
)
TABLE = Table("c", "datasets", ("RN50",), ("dtd", "eurosat"), ROWS, (1, 2), average="mean")


def values(*datasets: str) -> Values:
    found: Values = {}
    for name in datasets:
        found[Place("zero-shot", "RN50", name, 0)] = {1: 40.0}
        found[Place("TaskRes", "RN50", name, 1)] = {1: 51.0, 2: 52.0, 3: 53.0}
    return found


def made(
    table: Table = TABLE, found: Values | None = None, why: str = "", failures: tuple[str, ...] = ()
) -> Reproduced:
    paper = Paper("T", "A", "S", "Nowhere", {"table-1": TABLE})
    request = Request(paper, "made/table-1", table, TABLE)
    plan = ReproductionPlan(request, table, (), {"eurosat": "no folder"}, {"RN50": why})
    return lay_out(plan, values("dtd", "eurosat") if found is None else found, failures)


def test_published_numbers_stand_below_measured_ones() -> None:
    first, second = made().tables()
    assert (first.headings[2:], "1 shot" in first.title) == (("dtd", "eurosat", "average"), True)
    assert "2 shots" in second.title
    rows = {row[:2]: row[2:] for row in first.rows}
    assert rows["TaskRes", "measured"][0] == "52.00 ± 1.00"
    assert rows["TaskRes", "published"] == ("50.00", "60.00", "55.00")
    assert rows["TaskRes", "difference"] == ("+2.00", "-8.00*", "-")
    assert rows["zero-shot", "measured"][0] == "40.00"
    assert rows["CALIP", "published"][0] == "50.00"
    assert ("CALIP", "measured") not in rows
    assert any("excludes the published number" in note for note in made().notes)
    assert "CALIP: not reproduced, its code is not public." in made().notes


def test_zero_shot_stands_beside_every_number_of_shots() -> None:
    for table in made().tables():
        assert ("zero-shot", "measured", "40.00", "40.00", "-") in table.rows


def test_averages_of_some_data_sets_say_so() -> None:
    part = replace(TABLE, datasets=("dtd",), rows=TABLE.rows)
    reproduced = made(part, values("dtd"))
    assert "Skipped: eurosat (no folder)." in reproduced.notes
    assert reproduced.tables()[0].headings[2:] == ("dtd",)
    assert "Averages are over dtd, eurosat." in made(found=values("dtd", AVERAGE)).notes
    assert not any("Averages are" in note for note in made(found=values("dtd")).notes)


@pytest.mark.parametrize(
    ("why", "note"),
    [
        ("other weights (laion)", "RN50: not comparable with the published numbers: other weights"),
        ("weights not verified", "RN50: weights not verified"),
    ],
)
def test_notes_say_what_differs_from_the_paper(why: str, note: str) -> None:
    reproduced = made(why=why)
    assert any(line.startswith(note) for line in reproduced.notes)
    has_differences = any(row[1] == "difference" for t in reproduced.tables() for row in t.rows)
    assert has_differences == (why == "weights not verified")


def test_failures_are_named() -> None:
    assert "Failed: TaskRes, dtd: nan." in made(failures=("TaskRes, dtd: nan",)).notes


def test_csv_has_a_line_per_number() -> None:
    lines = [*csv.DictReader(io.StringIO(made().csv()))]
    (one,) = [
        row
        for row in lines
        if (row["row"], row["dataset"], row["shots"]) == ("TaskRes", "eurosat", "1")
    ]
    assert (one["n"], one["mean"], one["deviation"], one["published"]) == ("3", "52", "1", "60")
    assert (one["difference"], one["excluded"], one["comparable"]) == ("-8", "1", "1")


def test_shots_are_drawn_as_lines_with_the_published_ones_dashed() -> None:
    (figure,) = figures_of(made(replace(TABLE, columns="shots")))
    names = [trace["name"] for trace in figure.data]
    assert "TaskRes" not in names  # its average over both is not among the values
    (figure,) = figures_of(made(replace(TABLE, columns="shots", datasets=("dtd",))))
    names = [trace["name"] for trace in figure.data]
    assert {"zero-shot", "TaskRes", "TaskRes (published)"} <= {*names}


def test_two_measures_are_points_and_overlaps_a_matrix() -> None:
    row = Row("R-AMT", "rmt")
    pair = replace(TABLE, columns="measures", measures=("gain", "sparsity"), rows=(row,))
    found: Values = {}
    for name in TABLE.datasets:
        found[Place("R-AMT", "RN50", name, 1, "gain")] = {1: 5.0}
        found[Place("R-AMT", "RN50", name, 1, "sparsity")] = {1: 2.0}
    (figure,) = figures_of(made(replace(pair, shots=(1,)), found))
    assert [*figure.data[0]["text"]] == ["dtd", "eurosat"]
    masks = replace(pair, measures=("mask-iou",), shots=(1,))
    overlap = {Place("R-AMT", "RN50", "dtd and eurosat", 1, "mask-iou"): {0: 0.25}}
    (table,) = made(masks, overlap).tables()
    assert table.headings[2:] == ("dtd and eurosat",)
    assert "over 1 pairs of trainings" in " ".join(made(masks, overlap).notes)
    (figure,) = figures_of(made(masks, overlap))
    assert figure.data[0]["z"] == [[None, 0.25], [0.25, None]]
