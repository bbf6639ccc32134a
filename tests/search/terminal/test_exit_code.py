"""Exit codes as the shell sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INTERRUPTED = """
import signal, sys
from search.terminal.exit_code import exit_code

def command():
    exec("import signal; signal.raise_signal(signal.SIGINT)")  # as the code of a dataclass

sys.exit(exit_code(command, "Go on."))
"""


def test_ctrl_c_gives_its_code_wherever_it_falls(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, "-m", "interrupted"]
    paths = f"{tmp_path}:{Path(__file__).parents[3]}"
    ended = subprocess.run(
        command, env={"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "Go on.\n", "")
