"""Completion in a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from search.completion import COMMANDS, bash_script, main
from spaces.registry import SPACES

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(bash_script())
    return path


def completed(script: Path, folder: Path, line: str) -> list[str]:
    """What bash offers for the last word of a line, as its own machinery would ask."""
    program = """
        source "$1"
        read -r -a COMP_WORDS <<<"$2"
        [[ $2 == *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        spec=$(complete -p "${COMP_WORDS[0]##*/}") || exit 3
        [[ $spec =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" 2>/dev/null
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(script), line],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_is_offered(script: Path, tmp_path: Path) -> None:
    for name in ("mine", "main", "yours"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        (tmp_path / f"sweeps/{name}/sweep.json").write_text("{}")
    (tmp_path / "sweeps/mlartifacts").mkdir()
    (tmp_path / "other/elsewhere").mkdir(parents=True)
    (tmp_path / "other/elsewhere/sweep.json").write_text("{}")

    def offered(line: str) -> list[str]:
        return completed(script, tmp_path, line)

    assert set(offered("python -m search.")) == set(COMMANDS)
    assert offered("python -m search.st") == ["search.status"]
    assert "--storage" in offered("python -m search.run --st")
    assert offered("python3 -m search.run --dry") == ["--dry-run"]
    assert offered(".venv/bin/python -u -m search.list --js") == ["--json"]
    assert set(offered("python -m search.run --space ")) == set(SPACES)
    assert offered("python -m search.run --trials 9 --sampler nsg") == ["nsga2"]
    assert set(offered("python -m search.run --resume m")) == {"mine", "main"}
    assert set(offered("python -m search.status ")) == {"main", "mine", "yours"}
    assert offered("python -m search.status --storage other el") == ["elsewhere"]
    assert "artifact" in offered("python -m search.export mine --format ")
    assert "other" in offered("python -m search.run --storage o")
    # Everything else is completed by python and bash.
    assert offered("python -m http") == []
    assert offered("python some") == []


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bash"]) == 0
    assert "complete -o bashdefault -o default -F _search_python python" in capsys.readouterr().out
    assert main(["fish"]) == 2
    assert "invalid choice: 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name]().parse_args(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"python -m {name} 0.")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -m search.completion bash | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
