"""The hyper-parameter search. Each module at this level is a command: `python -m search.run`."""

import os
import signal
import sys
from types import FrameType


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C: while a command is being imported, which takes seconds, end with one line
    instead of a traceback."""
    if hasattr(sys.modules["__main__"], "main"):
        raise KeyboardInterrupt
    os.write(2, b"Stopped before anything was started.\n")
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # Python is about to run a module of this package as a command
    signal.signal(signal.SIGINT, _interrupt)
