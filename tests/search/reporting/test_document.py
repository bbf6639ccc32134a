"""Tables and their formats."""

from __future__ import annotations

import csv
import io
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.reporting.document import Table, mean_of, percent
from trainables.core.text import printable

ROWS = st.lists(st.tuples(st.text(), st.text()), max_size=4)


@given(ROWS)
def test_a_csv_is_read_back_as_it_was(rows: list[tuple[str, str]]) -> None:
    """Except for quotes before formulas of a spreadsheet, and escapes of invisible characters."""
    # Line ends of other systems are the one thing that Python's reader unifies.
    rows = [tuple(c.replace("\r", "") for c in row) for row in rows]  # type: ignore[misc]
    text = Table("t", "T", ("a", "b"), tuple(rows)).csv()
    (heading, *read) = csv.reader(io.StringIO(text, newline=""))
    assert heading == ["a", "b"]
    for found, row in zip(read, rows, strict=True):
        assert [cell.removeprefix("'") for cell in found] == [
            printable(cell).removeprefix("'") for cell in row
        ]


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "-0.5;=1"]
)
def test_no_spreadsheet_runs_a_cell(cell: str) -> None:
    (_, (found, *_)) = csv.reader(io.StringIO(Table("t", "T", ("a",), ((cell,),)).csv()))
    assert found == f"'{cell}"


@pytest.mark.parametrize(
    "cell", ["-0.50", "+1.25", "-", "84.13 ± 0.52", "+1.2 [-0.3, +2.7]", "1e-5"]
)
def test_numbers_stay_numbers(cell: str) -> None:
    assert Table("t", "T", ("a",), ((cell,),)).csv() == f"a\n{_quoted(cell)}\n"


def _quoted(cell: str) -> str:
    return f'"{cell}"' if "," in cell else cell


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\u202eb", "\udc80", "nul\0", "\x07"])
def test_control_characters_are_escaped_everywhere(name: str) -> None:
    table = Table("t", name, (name,), ((name,),), name)
    for text in (table.markdown(), table.latex(), table.csv()):
        text.encode()
        assert not set(text) & set("\x1b\u202e\0\x07")


@given(ROWS)
def test_markdown_keeps_its_columns_whatever_the_names(rows: list[tuple[str, str]]) -> None:
    text = Table("t", "T", ("a", "b"), tuple(rows)).markdown()
    lines = text.partition("\n\n")[2].split("\n")[: 2 + len(rows)]
    for line in lines:
        bars = line.replace("\\\\", "").replace("\\|", "").count("|")
        assert bars == 3
    assert "<" not in text.replace("\\<", "")


def test_latex_escapes_what_it_would_read() -> None:
    table = Table("t", "T", ("a_b", "100 %"), (("x & y", "1 ± 2"), ("$", "\\")))
    text = table.latex()
    assert r"a\_b & 100 \% \\" in text
    assert r"x \& y & 1 $\pm$ 2 \\" in text
    assert r"\$ & \textbackslash{} \\" in text
    assert text.count(r"\begin{tabular}{lr}") == 1


def test_names_are_no_arguments_of_latex_and_no_markup_of_markdown() -> None:
    table = Table("t", "T", ("*h", "n"), (("[a]star", "1"), ("*b", "2"), ("$x$ ~y~ &lt;", "3")))
    rows = [line for line in table.latex().splitlines() if line.endswith(r" \\")]
    assert len(rows) == 4
    assert not any(row.startswith(("*", "[")) for row in rows)
    assert rows[1].removeprefix("{}").startswith("[a]star & ")
    assert r"\$x\$ \~y\~ \&lt;" in table.markdown()


def test_means_are_written_in_per_cent() -> None:
    assert percent(0.84125) == "84.12"
    assert percent(None) == "-"
    values = (0.5, 0.7, 0.9)
    assert mean_of(values) == f"70.00 ± {100 * statistics.stdev(values):.2f}"
    assert mean_of((0.5,)) == "50.00"
