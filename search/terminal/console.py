"""Where commands print: a terminal of any width, or a file, a pipe, a log of CI."""

from __future__ import annotations

import signal
import sys

from rich.console import Console

_WIDE = 160  # columns of a table that is no terminal's


def open_console(stderr: bool = False) -> Console:
    """A console that shows text as it is: what comes from users and data is no markup.

    Elsewhere than on a terminal nothing is broken into lines, so that a log can be searched.
    """
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    wide = None if terminal else _WIDE
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=not terminal, width=wide)


def end_with_the_reader() -> None:
    """From now on this process ends silently when nobody reads what it prints (`| head`): for
    commands that do nothing but print."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
