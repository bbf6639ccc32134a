"""Write the reference pages of the commands from what the commands say themselves.

command_pages.py [FOLDER]
"""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from search.completion import COMMANDS

COLUMNS = 102  # argparse leaves two free
FOLDER = Path(__file__).parents[1] / "docs" / "commands"
NAMES = (*COMMANDS, "search.completion")
NOTE = "<!-- Written by `python .ci/command_pages.py`; a test compares. -->"


def summary(name: str) -> str:
    """What the command's own file says in its first line, after its name."""
    line = (import_module(name).__doc__ or "").splitlines()[0]
    return line.partition("`: ")[2].removesuffix(".")


def exit_codes(name: str) -> str:
    """What `main` says that it returns."""
    said = " ".join((import_module(name).main.__doc__ or "").split()).partition("; ")[2]
    return said if said.startswith("0 ") else f"0 when that is done, {said}"


def page(name: str, parser: argparse.ArgumentParser) -> str:
    """One command: its help and its exit codes, as Markdown."""
    return (
        f"{NOTE}\n\n# `python -m {name}`\n\n"
        f"{summary(name)[0].upper()}{summary(name)[1:]}.\n\n"
        f"```text\n{parser.format_help()}```\n\n"
        f"Exit code: {exit_codes(name)}\n"
    )


def index() -> str:
    """All commands in a table."""
    rows = "".join(
        f"| [`python -m {name}`]({name.partition('.')[2]}.md) | {summary(name)} |\n"
        for name in NAMES
    )
    return (
        f"{NOTE}\n\n# The commands\n\n| command | what it gives |\n| --- | --- |\n{rows}\n"
        "Each has `--help`, whose text these pages are, and `--version`. Mistakes in what was "
        "asked for are told before anything starts, each in one line that begins with `error:`, "
        "and end with exit code 2. After Ctrl-C the exit code is 130.\n"
    )


def main(folder: Path) -> None:
    """Write all pages."""
    os.environ["COLUMNS"] = str(COLUMNS)
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        text = page(name, import_module(name).build_parser())
        (folder / f"{name.partition('.')[2]}.md").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
