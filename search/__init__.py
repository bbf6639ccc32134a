"""The Python interface (`Sweep`, `load`, `FewShotTrainable`) and the commands, and what commands do
before their imports, which take seconds.

With `python -m search.COMMAND`, Python imports this package first. `--help` is answered from a
stored text, which `.ci/command_pages.py` writes, and Ctrl-C ends a command that is still loading
with one line instead of a traceback.
"""

import atexit
import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import trainables  # noqa: F401  # first, see there

if TYPE_CHECKING:
    from search.api import Sweep, load
    from trainables.trainable import FewShotTrainable

__all__ = ["HELP", "FewShotTrainable", "Sweep", "load"]

HELP = Path(__file__).parent / "terminal" / "help"


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is used: it takes seconds."""
    if name in ("Sweep", "load"):
        import search.api

        return getattr(search.api, name)
    if name == "FewShotTrainable":
        from trainables.trainable import FewShotTrainable

        return FewShotTrainable
    raise AttributeError(f"module 'search' has no attribute '{name}'")


def answer_help(command: str) -> None:
    """Print the stored help text of `command` and exit if the command line asks for it."""
    given = set(sys.argv[1:])
    page = HELP / f"{command}.txt"
    if "--help-all" in given and (whole := HELP / f"{command}.all.txt").is_file():
        given, page = given | {"--help"}, whole
    if {"-h", "--help"} & given and page.is_file():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
        sys.stdout.write(page.read_text(encoding="utf-8"))
        sys.exit(0)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    if hasattr(sys.modules["__main__"], "main"):  # loaded: the command handles it
        raise KeyboardInterrupt
    stop_before_start(signum, frame)


def stop_before_start(signum: int, frame: FrameType | None) -> None:
    """End the process after Ctrl-C, with one line."""
    os.write(2, b"Stopped. Nothing had been started.\n")
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # until Python has found the module
    # By default, collections take a quarter of the time of the imports, and as much at the exit.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    _module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    answer_help(_module)
    if (HELP / f"{_module}.txt").is_file():
        signal.signal(signal.SIGINT, _interrupt)
