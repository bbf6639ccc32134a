"""The exit code of a command, and what it prints if it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search.core.problems import StoppedError, UsageError
from search.terminal.console import open_console, print_errors
from search.tracking.uri import TrackingError
from trainables.core.storage import StorageError

Failures = Mapping[type[Exception], tuple[int, str]]
"""Error -> exit code and message, in which `{}` is the error."""
_KNOWN: Failures = dict.fromkeys((TrackingError, StorageError, StoppedError), (2, "{}"))
_NO_PERMISSION = (2, "{}. Change the permissions, or name another place.")


def exit_code(
    command: Callable[[], int], interrupted: str = "Interrupted.", failures: Failures = _KNOWN
) -> int:
    """Run a command and return its exit code: 2 after an error, which is printed, or the one in
    `failures`, and 130 after Ctrl-C, after which `interrupted` says how to go on."""
    try:
        return command()
    except UsageError as error:
        print_errors(error.problems)
        return 2
    except KeyboardInterrupt:
        return interrupted_code(interrupted)
    except Exception as error:
        known: Mapping[type, tuple[int, str]] = {**_KNOWN, **failures}
        found = next((known[kind] for kind in type(error).__mro__ if kind in known), None)
        if found is None and isinstance(error, PermissionError):
            found = _NO_PERMISSION
        if found is None:
            raise
        print_errors([found[1].format(error)])
        return found[0]


def interrupted_code(message: str) -> int:
    """Print what Ctrl-C ended and how to go on, and return the exit code."""
    # Had Ctrl-C fallen into code that was executed from a string, such as a dataclass, Python would
    # end by the signal and not with this code. It forgets that when it executes another string.
    exec("")
    open_console(stderr=True).print(message)
    return 130
