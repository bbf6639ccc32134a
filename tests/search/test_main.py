"""`python -m search`: the list of commands, and the commands by their names."""

from __future__ import annotations

import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from search import HELP
from search.__main__ import commands, main
from search.completion import COMMANDS

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "search", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f"search.{name}" for name in commands()} == {*COMMANDS, "search.completion"}
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name, sentence in commands().items():
        assert f"  {name} " in shown
        assert sentence in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_a_command_is_that_of_its_module() -> None:
    assert (
        run("status", "--help").stdout
        == (ROOT / "search/terminal/help/search.status.txt").read_text()
    )
    done = run("list", "--storage", "no-such-folder")
    same = subprocess.run(
        [sys.executable, "-m", "search.list", "--storage", "no-such-folder"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        same.returncode,
        same.stdout,
        same.stderr,
    )


def test_help_loads_nothing() -> None:
    """Under 0.5 s of processor time."""
    before = used_by_children()
    assert run("run", "--help").returncode == 0
    assert used_by_children() - before < 0.5


def used_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_two_screens_of_the_common_options() -> None:
    short, whole = run("run", "--help").stdout, run("run", "--help-all").stdout
    assert len(short.splitlines()) < 125 < len(whole.splitlines())
    assert "--eval-seeds" not in short
    assert "--help-all" in short
    for option in ("--eval-seeds", "--pruner", "--space"):
        assert f"  {option} " in whole


@pytest.mark.parametrize("page", sorted(HELP.glob("*.txt")), ids=lambda page: page.stem)
def test_help_fits_80_columns(page: Path) -> None:
    assert max(map(len, page.read_text().splitlines())) <= 80


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rum"]) == 2
    told = capsys.readouterr().err
    assert "got 'rum'" in told
    assert "report, reproduce, run, " in told


def test_the_console_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fewshot-clip": "search.__main__:main"}
