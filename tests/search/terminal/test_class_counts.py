"""Images per class, and what a sweep does with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from search.options import configure
from search.terminal.class_counts import folder_table, task_tables, texts_of_classes
from tests.trainables.data.trees import paint


@pytest.fixture
def own(tmp_path: Path) -> str:
    for label, size in enumerate((8, 20)):
        for i in range(size):
            paint(tmp_path / f"class {label}" / f"{i}.png", label, i)
    return f"folder:{tmp_path}"


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (("--shots", "2"), [("2", "2", "4"), ("2", "2", "12")]),
        (("--shots", "all"), [("6", "6", "0"), ("14", "14", "0")]),
        (("--shots", "2", "--seeds", "1"), [("2", "2", "2"), ("2", "2", "10")]),
    ],
)
def test_what_a_sweep_does_with_each_class(
    options: tuple[str, ...], rows: list[tuple[str, ...]], own: str
) -> None:
    task = configure(["--space", "gda", "--dataset", own, *options]).task
    (table,) = task_tables(task, task.source(""))
    pools = [("4", "2", "2"), ("10", "4", "6")]
    assert cells(table) == [[f"class {label}", *pools[label], *rows[label]] for label in range(2)]
    assert bool(table.caption) == any(row[2] != "0" for row in rows)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ((), '"a photo of a class 0."'),
        (("--prompt", "{}, painted.", "--prompt", "a {}."), '"class 0, painted.", "a class 0."'),
    ],
)
def test_the_texts_of_a_class(options: tuple[str, ...], texts: str, own: str) -> None:
    config = configure(["--space", "gda", "--dataset", own, "--shots", "2", *options])
    first = config.general_space.first
    (line,) = texts_of_classes(config.task, config.task.source(""), first)
    assert f"The class 'class 0' is described by {texts}, and the others" in line


def test_the_numbers_of_shots_that_work(own: str) -> None:
    table = folder_table(own)
    assert table is not None
    assert cells(table) == [["class 0", "4", "2", "2"], ["class 1", "10", "4", "6"]]
    assert "up to 2; --shots all trains on 14 images, with --validation folds on 20" in str(
        table.caption
    )
    assert folder_table("digits") is None


def test_of_many_classes_the_smallest_are_shown(tmp_path: Path) -> None:
    for label in range(23):
        for i in range(3 if label < 21 else 10):
            paint(tmp_path / f"class {label:02}" / f"{i}.png", label % 3, i)
    table = folder_table(f"folder:{tmp_path}")
    assert table is not None
    assert len(cells(table)) == 20
    assert "20 smallest of 23 classes" in str(table.title)
    assert "class 22" not in {row[0] for row in cells(table)}
    Console(quiet=True).print(table)
