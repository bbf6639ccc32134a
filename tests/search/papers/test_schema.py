"""The papers' files: what they hold, and what a mistake in one says."""

from __future__ import annotations

import pytest

from search.papers.cells import cells, row_config
from search.papers.schema import Table, papers, read_paper
from spaces.registry import SpaceError
from trainables.core.records import RecordError
from trainables.methods.base import TaskFacts

TABLES = [(name, key) for name, paper in papers().items() for key in paper.tables]

PAPER = """
title = "T"
authors = "A"
short = "S"
source = "Nowhere"
[tables.table-1]
caption = "C"
columns = "shots"
backbones = ["RN50"]
datasets = ["all11"]
shots = [1, 2, 4, 8, 16]
[[tables.table-1.rows]]
name = "TaskRes"
method = "taskres"
published = [{ shots = 1, values = { dtd = 50.17 } }]
"""


def made(text: str = PAPER) -> Table:
    return read_paper(text, "made").tables["table-1"]


def test_eleven_data_sets_five_shots_and_three_draws_are_165_trainings() -> None:
    assert len({*cells(made())}) == len([*cells(made())]) == 165


def test_zero_shot_is_one_cell_per_data_set() -> None:
    text = PAPER + '[[tables.table-1.rows]]\nname = "zero-shot"\nmethod = "zero-shot"\n'
    assert len([*cells(made(text))]) == 165 + 11


def test_a_row_can_have_fewer_cells_than_its_table() -> None:
    text = PAPER.replace('method = "taskres"', 'method = "taskres"\nshots = [1, 4]')
    text = text.replace('method = "taskres"', 'method = "taskres"\ndatasets = ["dtd", "eurosat"]')
    assert len([*cells(made(text))]) == 2 * 2 * 3


def test_a_row_of_published_numbers_has_no_cells() -> None:
    text = PAPER.replace('method = "taskres"', 'why = "its code is not public"')
    assert [*cells(made(text))] == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[tables.table-1]", "[tables.table-1", "'made.toml' must be valid TOML"),
        ('caption = "C"\n', "", "'made.toml.tables.table-1.caption' is missing"),
        ("shots = [1, 2", "shots = [0, 2", "'made.toml.tables.table-1.shots[0]' must be greater"),
        ('columns = "shots"', 'columns = "rows"', "tables.table-1.columns' must be 'shots'"),
        ('method = "taskres"', 'methods = "taskres"', "rows[0].methods' is unknown"),
        ('method = "taskres"', "", "must have either a method or a reason"),
        ("{ dtd =", "{ dtdd =", "values' must be of the row's data sets, got dtdd"),
        ("{ shots = 1,", "{ shots = 3,", "published[0].shots' must be one of 1, 2, 4, 8, 16"),
        ("{ shots = 1,", "{", "published[0].shots' is missing"),
        ("{ shots = 1,", '{ part = "new", shots = 1,', "part' must be given for base-to-new"),
        ("{ shots = 1,", '{ measure = "size", shots = 1,', "measure' must be one of accuracy"),
        ("{ shots = 1,", '{ backbone = "RN5", shots = 1,', "backbone' must be one of RN50"),
    ],
)
def test_mistakes_name_file_field_and_rule(old: str, new: str, message: str) -> None:
    assert old in PAPER
    with pytest.raises(RecordError) as caught:
        read_paper(PAPER.replace(old, new), "made")
    assert message in str(caught.value)


def test_two_rows_of_a_table_have_different_names() -> None:
    text = PAPER + '[[tables.table-1.rows]]\nname = "TaskRes"\nmethod = "taskres"\n'
    with pytest.raises(RecordError, match="must have different names, got 'TaskRes' twice"):
        read_paper(text, "made")


@pytest.mark.parametrize(("paper", "key"), TABLES)
def test_every_row_has_a_valid_configuration(paper: str, key: str) -> None:
    table = papers()[paper].tables[key]
    for row in table.rows:
        if row.method:
            facts = TaskFacts(table.datasets[0], 16, 160, protocol=table.protocol)
            config = row_config(row, facts)
            assert config.problems() == []
            assert config.methods == row.method


def test_an_unknown_method_is_named() -> None:
    row = made(PAPER.replace('"taskres"', '"taskrez"')).rows[0]
    with pytest.raises(SpaceError, match="taskres"):
        row_config(row, TaskFacts("dtd", 16, 160))
