"""Prints a reproduced table and writes it as Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from search.papers.cells import cells
from search.papers.schema import papers
from search.reporting import document
from search.reproduction.figures import figures_of
from search.reproduction.layout import Reproduced
from trainables.core.storage import Storage

PAGE = "reproduced.html"


def table_list() -> list[Table]:
    """Return one table per paper: its tables and figures, and their numbers of trainings."""
    found = []
    for name, paper in papers().items():
        title = f"{paper.title} ({paper.source})"
        listed = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for heading in ("name", "trainings", "what it shows"):
            listed.add_column(heading, justify="right" if heading == "trainings" else "left")
        for key, table in paper.tables.items():
            listed.add_row(f"{name}/{key}", str(len([*cells(table)])), table.caption)
        found.append(listed)
    return found


def print_reproduced(reproduced: Reproduced, console: Console) -> None:
    """Print the blocks and the notes."""
    for block in reproduced.tables():
        console.print(_for_terminal(block))
    for note in reproduced.notes:
        console.print(note, style="dim")


def _for_terminal(block: document.Table) -> Table:
    table = Table(box=None, pad_edge=False, title=block.title, title_justify="left")
    for place, heading in enumerate(block.headings):
        table.add_column(heading, justify="left" if place < block.labels else "right")
    before = ""
    for name, *rest in block.rows:
        table.add_row("" if name == before else name, *rest)
        before = name
    return table


def write_reproduced(reproduced: Reproduced, folder: Storage) -> list[str]:
    """Write a table's files, and return their names. Raises `StorageError`."""
    name = reproduced.plan.request.name.replace("/", "-")
    tables = reproduced.tables()
    notes = "\n".join(f"* {note}" for note in reproduced.notes)
    comments = "\n".join(f"% {note}" for note in reproduced.notes)
    files = {
        f"{name}.md": "\n".join([*(table.markdown() for table in tables), notes]) + "\n",
        f"{name}.tex": "\n".join([*(table.latex() for table in tables), comments]) + "\n",
        f"{name}.csv": reproduced.csv(),
    }
    for file, text in files.items():
        folder.write(file, text.encode())
    return [*files]


def write_page(found: Sequence[Reproduced], folder: Storage) -> str:
    """Write the page with several tables, and return its name. Raises `StorageError`."""
    from search.reporting.page import render_sections  # Plotly takes a second to load

    names = ", ".join(reproduced.plan.request.name for reproduced in found)
    sections = [_section(reproduced) for reproduced in found]
    page = render_sections("Reproduced tables", f"{names}.", sections)
    folder.write(PAGE, page.encode())
    return PAGE


def _section(reproduced: Reproduced) -> document.Section:
    """Return a table and its figures as a section of a page."""
    name = reproduced.plan.request.name
    return document.Section(
        name.replace("/", "-"),
        name,
        reproduced.notes,
        tuple(reproduced.tables()),
        tuple(figures_of(reproduced)),
    )
