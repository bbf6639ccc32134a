"""Completion in a real bash, zsh and fish."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from search.completion import COMMANDS, SHELLS, main, script
from spaces.registry import SPACES

Offered = dict[str, list[str]]
"""Command line -> what the shell offers for its last word."""

LINES = (
    "python -m search.",
    "python -m search.st",
    "python -m search ",
    "fewshot-clip ",
    "fewshot-clip run --dry",
    "fewshot-clip run --space ",
    "fewshot-clip run --resume m",
    "fewshot-clip status ",
    "python -m search status --storage other ",
    "python -m search.run --st",
    "python3 -m search.run --dry",
    ".venv/bin/python -u -m search.list --js",
    "python -m search.run --space ",
    "python -m search.run --trials 9 --sampler nsg",
    "python -m search.run --resume m",
    "python -m search.status ",
    "python -m search.status --storage other el",
    "python -m search.export mine --format ",
    "python -m search.run --storage ot",
)


def bash(path: Path, folder: Path, lines: Sequence[str]) -> Offered:
    """Call the completion function as bash does."""
    program = """
        source "$1"
        read -r -a COMP_WORDS <<<"$2"
        [[ $2 == *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        spec=$(complete -p "${COMP_WORDS[0]##*/}") || exit 3
        [[ $spec =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" 2>/dev/null
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    return {
        line: ran(["bash", "--norc", "-c", program, "bash", str(path), line], folder).split()
        for line in lines
    }


def zsh(path: Path, folder: Path, lines: Sequence[str]) -> Offered:
    """Complete lines in the line editor of an interactive zsh, and record what is added."""
    program = f"""
        unsetopt automenu beep
        autoload -Uz compinit && compinit -D
        eval "$(< {shlex.quote(str(path))})"
        compadd() {{
          if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\\ * ]]; then
            builtin compadd "$@"
            return
          fi
          local -a hits
          builtin compadd -A hits "$@"
          print -rl -- $hits >> offered
          builtin compadd "$@"
        }}
        zle-line-init() {{
          local line
          for line in {shlex.join(lines)}; do
            print -r -- "= $line" >> offered
            BUFFER=$line CURSOR=$#line
            zle complete-word
          done
          exit
        }}
        zle -N zle-line-init
    """
    (folder / ".zshrc").write_text(program)
    command = "ZDOTDIR=. TERM=dumb zsh -d -i"
    ran(["script", "-qec", command, "/dev/null"], folder)
    found: Offered = {}
    for record in (folder / "offered").read_text().removeprefix("= ").split("\n= "):
        line, _, hits = record.partition("\n")
        found[line] = hits.split()
    return found


def fish(path: Path, folder: Path, lines: Sequence[str]) -> Offered:
    """Ask fish for its completions of lines."""
    program = "source $argv[1]; for line in $argv[2..-1]; echo \\n= $line; complete -C $line; end"
    said = ran(["fish", "--no-config", "-c", program, str(path), *lines], folder)
    found: Offered = {}
    for record in said.split("\n= ")[1:]:
        line, _, hits = record.partition("\n")
        found[line] = [hit.partition("\t")[0].removesuffix("/") for hit in hits.splitlines() if hit]
    return found


ASK: dict[str, Callable[[Path, Path, Sequence[str]], Offered]] = {
    "bash": bash,
    "zsh": zsh,
    "fish": fish,
}


def ran(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_offered(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for place in ("sweeps/mine", "sweeps/main", "sweeps/yours", "other/elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "sweep.json").write_text("{}")
    (tmp_path / "sweeps/mlartifacts").mkdir()
    path = tmp_path / "script"
    path.write_text(script(shell))
    offered = ASK[shell](path, tmp_path, LINES)

    names = {name.removeprefix("search.") for name in COMMANDS}
    assert set(offered["python -m search."]) - {"search"} == set(COMMANDS)
    assert set(offered["python -m search.st"]) == {"search.status"}
    assert set(offered["python -m search "]) == set(offered["fewshot-clip "]) == names
    assert set(offered["fewshot-clip run --dry"]) == {"--dry-run"}
    assert set(offered["fewshot-clip run --space "]) == set(SPACES)
    assert set(offered["fewshot-clip run --resume m"]) == {"mine", "main"}
    assert set(offered["fewshot-clip status "]) == {"main", "mine", "yours"}
    assert set(offered["python -m search status --storage other "]) == {"elsewhere"}
    assert "--storage" in offered["python -m search.run --st"]
    assert set(offered["python3 -m search.run --dry"]) == {"--dry-run"}
    assert set(offered[".venv/bin/python -u -m search.list --js"]) == {"--json"}
    assert set(offered["python -m search.run --space "]) == set(SPACES)
    assert set(offered["python -m search.run --trials 9 --sampler nsg"]) == {"nsga2"}
    assert set(offered["python -m search.run --resume m"]) == {"mine", "main"}
    assert set(offered["python -m search.status "]) == {"main", "mine", "yours"}
    assert set(offered["python -m search.status --storage other el"]) == {"elsewhere"}
    assert "artifact" in offered["python -m search.export mine --format "]
    assert "other" in offered["python -m search.run --storage ot"]


def test_other_uses_of_python_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script("bash"))
    assert bash(path, tmp_path, ["python some"]) == {"python some": []}


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bash"]) == 0
    assert "complete -o bashdefault -o default -F _search_python python" in capsys.readouterr().out
    assert main(["tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


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
