"""Commands that a person can paste: they work from where this one was given."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from search.core.config import SweepConfig
from trainables.credentials import without_password


def module_command(module: str, *arguments: str, storage: str) -> str:
    """`python -m MODULE ARGUMENTS`, with --storage where that is not the usual folder."""
    words = [tool("python"), "-m", module, *map(shlex.quote, arguments)]
    if storage != SweepConfig().storage:
        words += ["--storage", shlex.quote(without_password(storage))]
    return " ".join(words)


def tool(name: str) -> str:
    """How to call a program of this environment from here."""
    if os.environ.get("VIRTUAL_ENV") == sys.prefix:  # the environment is activated
        return name
    return shlex.quote(relative(Path(sys.executable).parent / name))


def relative(path: Path) -> str:
    """The path as seen from here, where that is shorter than going up."""
    found = os.path.relpath(path)
    return str(path) if found.startswith("..") else found
