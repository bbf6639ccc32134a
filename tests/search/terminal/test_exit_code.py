"""Exit codes as the shell sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from search.terminal.exit_code import exit_code

INTERRUPTED = """
import signal, sys
from search.terminal.exit_code import exit_code

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it

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


def denied() -> int:
    raise PermissionError(13, "Permission denied", "/locked")


def test_a_command_s_own_words_come_before_the_general_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(denied) == 2
    assert "'/locked'. Change the permissions" in capsys.readouterr().err
    assert exit_code(denied, failures={OSError: (1, "It could not be written: {}.")}) == 1
    assert capsys.readouterr().err.startswith("error: It could not be written")
