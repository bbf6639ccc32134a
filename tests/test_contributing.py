"""The example method in CONTRIBUTING.md is complete: once installed, the project works with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import RULES, read

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WHERE = "trainables/methods/logit_bias.py"


def shown() -> str:
    """The source of the example method."""
    (found,) = re.findall(rf"^`{WHERE}`:\n\n```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    return str(found)


def add_lines(project: Path) -> None:
    """Insert every + line below the line above it, which must occur exactly once in the file."""
    (block,) = re.findall(r"^```diff\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for part in block.split("--- ")[1:]:
        name, *lines = part.splitlines()
        file, above = project / name, ""
        for line in lines:
            kind, text = line[0], f"{line[1:]}\n"
            if kind == "+":
                content = file.read_text(encoding="utf-8")
                file.write_text(content.replace(above, above + text), encoding="utf-8")
                above += text
            else:
                above = text
                assert file.read_text(encoding="utf-8").count(above) == 1, f"{name}: {above}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the example method installed."""
    folder = tmp_path_factory.mktemp("project")
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("search", "spaces", "trainables", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    (folder / WHERE).write_text(shown(), encoding="utf-8")
    add_lines(folder)
    return folder


def run(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_written_as_the_rest_is(project: Path) -> None:
    run(project, "ruff", "check", "trainables", "spaces", "tests/conformance", "tests/spaces")
    run(project, "ruff", "format", "--check", WHERE, "tests/conformance", "spaces")
    module = read(WHERE, shown())
    assert {rule.__name__: found for rule in RULES if (found := rule(module))} == {}


def test_it_keeps_what_every_method_promises(project: Path) -> None:
    suite = ("tests/conformance", "tests/spaces", "-k", "logit-bias")
    said = run(project, "pytest", "-n", "0", "-p", "no:cacheprovider", *suite)
    assert int(re.findall(r"(\d+) passed", said)[0]) > 30


@pytest.mark.slow
def test_it_can_be_searched(project: Path) -> None:
    quick = ("--trials", "2", "--eval-seeds", "1", "--tracking-uri", "none")
    said = run(project, "search.run", "--space", "logit-bias", *quick)
    assert "Trials: 2 complete." in said
    assert (project / "sweeps").is_dir()
