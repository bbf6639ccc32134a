"""The exit code of a command that changes a sweep, and what it prints if it fails."""

from __future__ import annotations

from collections.abc import Callable

from search.core.problems import StoppedError, UsageError
from search.terminal.console import open_console, print_errors
from search.tracking.uri import TrackingError
from trainables.core.storage import StorageError


def exit_code(command: Callable[[], int], interrupted: str) -> int:
    """Run a command and return its exit code: 2 after an error, which is printed, and 130 after
    Ctrl-C, after which `interrupted` says how to go on."""
    try:
        return command()
    except (UsageError, TrackingError, StorageError, StoppedError) as error:
        print_errors(error.problems if isinstance(error, UsageError) else [str(error)])
        return 2
    except KeyboardInterrupt:
        open_console(stderr=True).print(f"Interrupted. {interrupted}")
        return 130
