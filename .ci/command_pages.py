"""Write the reference page and the stored help text of every command from its parser.

command_pages.py [FOLDER_OF_PAGES FOLDER_OF_HELP_TEXTS]
"""

import os
import sys
from importlib import import_module
from pathlib import Path

from search import HELP
from search.completion import COMMANDS

COLUMNS = 82  # argparse leaves two free
FOLDERS = (Path(__file__).parents[1] / "docs" / "commands", HELP)
NAMES = (*COMMANDS, "search.completion")
NOTE = "<!-- Written by `python .ci/command_pages.py`; a test compares. -->"


def summary(name: str) -> str:
    """The first line of the command's module, after its name."""
    line = (import_module(name).__doc__ or "").splitlines()[0]
    return line.partition("`: ")[2].removesuffix(".")


def exit_codes(name: str) -> str:
    """The exit codes in the docstring of `main`."""
    said = " ".join((import_module(name).main.__doc__ or "").split()).partition("; ")[2]
    said = said.removeprefix("return ")
    return said if said.startswith("0 ") else f"0 on success, {said}"


def page(name: str, help_text: str) -> str:
    """The reference page of a command in Markdown: help and exit codes."""
    return (
        f"{NOTE}\n\n# `python -m {name}`\n\n"
        f"{summary(name)[0].upper()}{summary(name)[1:]}.\n\n"
        f"```text\n{help_text}```\n\n"
        f"Exit code: {exit_codes(name)}\n"
    )


def index() -> str:
    """The index page: a table of all commands."""
    rows = "".join(
        f"| [`python -m {name}`]({name.partition('.')[2]}.md) | {summary(name)} |\n"
        for name in NAMES
    )
    return (
        f"{NOTE}\n\n# The commands\n\n| command | what it does |\n| --- | --- |\n{rows}\n"
        "Each has `--help`, whose text these pages repeat, and `--version`. All mistakes in a "
        "command line are reported before any work starts, each in one line that begins with "
        "`error:`; the exit code is then 2. After Ctrl-C the exit code is 130. It is 1 if the work "
        "itself failed: no trial succeeded, a sweep or its evaluation could not go on, or a "
        "training of `search.reproduce` failed.\n"
    )


def main(pages: Path, texts: Path) -> None:
    """Write all pages and help texts."""
    os.environ["COLUMNS"] = str(COLUMNS)
    for folder in (pages, texts):
        folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        build = import_module(name).build_parser
        text = build().format_help()
        if "--help-all" in text:  # `--help` is shorter
            (texts / f"{name}.all.txt").write_text(text, encoding="utf-8")
            short = build(everything=False).format_help()
            (texts / f"{name}.txt").write_text(short, encoding="utf-8")
        else:
            (texts / f"{name}.txt").write_text(text, encoding="utf-8")
        (pages / f"{name.partition('.')[2]}.md").write_text(page(name, text), encoding="utf-8")
    (pages / "README.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main(*(map(Path, sys.argv[1:3]) if len(sys.argv) > 2 else FOLDERS))
