"""Which part of a table is reproduced."""

from __future__ import annotations

import pytest

from search.core.problems import UsageError
from search.papers.cells import cells
from search.papers.schema import PAPERS, papers
from search.reproduction.request import find_table, miniature, narrowed


def test_the_whole_of_table_17_without_baselines_is_165_trainings() -> None:
    _, table = find_table("rmt/table-17")
    assert len([cell for cell in cells(table) if cell.row == "R-AMT"]) == 11 * 5 * 3


def test_a_part_has_the_cells_of_its_data_sets_shots_and_draws() -> None:
    _, table = find_table("rmt/table-17")
    part = narrowed(table, ["dtd", "eurosat"], [1, 4], [1])
    found = [cell for cell in cells(part) if cell.row == "R-AMT"]
    assert {(c.dataset, c.shots, c.seed) for c in found} == {
        (name, shots, 1) for name in ("dtd", "eurosat") for shots in (1, 4)
    }


def test_domain_generalisation_keeps_its_source() -> None:
    _, table = find_table("taskres/table-1")
    part = narrowed(table, ["imagenet_a"], [], [])
    assert part.datasets == ("imagenet", "imagenet_a")


@pytest.mark.parametrize(
    ("only", "shots", "seeds", "message"),
    [
        (["digits"], [], [], "--only must be one of the table's (imagenet, "),
        ([], [3], [], "--shots must be one of the table's (1, 2, 4, 8, 16), got 3."),
        ([], [], [1, 1], "--seeds must be different numbers of at least 0, got 1,1."),
        ([], [], [-1], "--seeds must be different numbers of at least 0, got -1."),
    ],
)
def test_a_part_must_be_one_of_the_table(
    only: list[str], shots: list[int], seeds: list[int], message: str
) -> None:
    _, table = find_table("rmt/table-17")
    with pytest.raises(UsageError) as caught:
        narrowed(table, only, shots, seeds)
    assert message in str(caught.value)


def test_an_unknown_table_suggests_one() -> None:
    with pytest.raises(UsageError, match="taskres/table-4"):
        find_table("taskres/table4")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_miniature_has_every_row_and_every_number_of_shots(paper: str) -> None:
    for table in papers()[paper].tables.values():
        small = miniature(table)
        assert [row.name for row in small.rows] == [row.name for row in table.rows]
        assert small.shots == table.shots
        assert not any(row.published for row in small.rows)
        trainable = [row.name for row in table.rows if row.method]
        assert list(dict.fromkeys(c.row for c in cells(small))) == trainable
