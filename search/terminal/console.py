"""Output of commands: to a terminal of any width, a file, a pipe or a CI log."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from search.terminal.parser import DEFAULT_STORAGE
from search.tracking.uri import ui_command
from trainables.core.credentials import without_password
from trainables.core.text import printable

_UNLIMITED = 100_000  # columns of a table that goes to no terminal: no cell is folded


class PlainConsole(Console):
    """A console that prints text as it is, except for control characters, which it escapes.

    Text comes from users and data: it is no markup, and must not move the cursor.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape control characters in strings and cells of tables."""
        return super().render_str(printable(text, keep="\n\t"), **options)


def open_console(stderr: bool = False) -> Console:
    """A console that breaks lines on a terminal only, so that a log can be searched."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return PlainConsole(
        stderr=stderr,
        markup=False,
        highlight=False,
        soft_wrap=not terminal,
        width=None if terminal else _UNLIMITED,
    )


def print_errors(problems: Iterable[str]) -> None:
    """Print one line per problem to standard error."""
    console = open_console(stderr=True)
    for problem in problems:
        console.print(f"error: {' '.join(problem.splitlines())}", soft_wrap=True)


def end_with_the_reader() -> None:
    """End silently when the output is closed (`| head`); for commands that only print."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def module_command(module: str, *arguments: str, storage: str) -> str:
    """`python -m MODULE ARGUMENTS` to paste here, with --storage unless it is the default."""
    words = [tool("python"), "-m", module, *map(shlex.quote, arguments)]
    if storage != DEFAULT_STORAGE:
        words += ["--storage", shlex.quote(without_password(storage))]
    return " ".join(words)


def mlflow_command(uri: str) -> str:
    """How to see the runs: the command that starts MLflow's page, or the address of a server."""
    command = ui_command(uri)
    program, space, rest = command.partition(" ")
    return f"{tool('mlflow')} {rest}" if space and program == "mlflow" else command


def tool(name: str) -> str:
    """How to call a program of this environment from here."""
    if os.environ.get("VIRTUAL_ENV") == sys.prefix:  # the environment is activated
        return name
    return shlex.quote(relative(Path(sys.executable).parent / name))


def relative(path: Path) -> str:
    """The path relative to the current folder, unless that goes up."""
    found = os.path.relpath(path)
    return str(path) if found.startswith("..") else found
