"""`python -m search.completion`: prints a script for completion in bash, zsh or fish."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

import shtab

from search import (
    annotate,
    archive,
    dashboard,
    delete,
    doctor,
    example,
    export,
    predict,
    rename,
    report,
    reproduce,
    run,
    spaces,
    status,
    sync,
)
from search import list as listing
from search.core.config import KEEP
from search.core.pruners import PRUNERS
from search.core.samplers import SAMPLERS
from search.exporting.formats import FORMATS
from search.terminal.console import end_with_the_reader
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser
from spaces.registry import SPACES
from trainables.core.protocols import Objective, Protocol, Validation
from trainables.data.registry import DATASETS

COMMANDS: Mapping[str, Callable[[], argparse.ArgumentParser]] = {
    "search.run": run.build_parser,
    "search.list": listing.build_parser,
    "search.status": status.build_parser,
    "search.report": report.build_parser,
    "search.dashboard": dashboard.build_parser,
    "search.export": export.build_parser,
    "search.predict": predict.build_parser,
    "search.sync": sync.build_parser,
    "search.annotate": annotate.build_parser,
    "search.rename": rename.build_parser,
    "search.archive": archive.build_parser,
    "search.delete": delete.build_parser,
    "search.reproduce": reproduce.build_parser,
    "search.doctor": doctor.build_parser,
    "search.example": example.build_parser,
    "search.spaces": spaces.build_parser,
}
"""What there is to complete."""

SHELLS = ("bash", "zsh", "fish")
"""Shells that have a script."""

_INTRODUCTION = """\
Print a script for a shell that completes `fewshot-clip COMMAND` and `python -m search.COMMAND`:
commands, options, names of spaces, samplers and data sets, sweeps in the storage folder. For this
shell, or in ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:

  eval "$(python -m search.completion bash)"
  eval "$(python -m search.completion zsh)"
  python -m search.completion fish | source"""

# Values that an option takes, but not alone: rmt+taskres is a space, too.
_VALUES: Mapping[str, Iterable[str]] = {
    "space": SPACES,
    "sampler": tuple(SAMPLERS),
    "pruner": tuple(PRUNERS),
    "keep_artifacts": KEEP,
    "protocol": get_args(Protocol),
    "validation": get_args(Validation),
    "objective": get_args(Objective),
    "datasets": (*DATASETS, "all11"),
    "device": ("auto", "cpu", "cuda"),
    "study_storage": ("sqlite:///", "postgresql://"),
    "draws": ("seeded", "coop"),
    "format": tuple(FORMATS),
}
_SWEEPS = frozenset({"name", "resume", "start", "compare"})
_FOLDERS = frozenset({"storage", "data", "output"})

_PROGRAM = "fewshot-clip"
_COMPLETE_SWEEPS = {"bash": "_search_sweeps", "zsh": "_search_sweeps", "fish": "(_search_sweeps)"}

_PREAMBLES = {
    "bash": """\
_search_sweeps() {
  local place=sweeps previous= word file
  for word in "${COMP_WORDS[@]}"; do
    [[ $previous == --storage ]] && place=${word/#\\~/$HOME}
    previous=$word
  done
  for file in "$place"/*/sweep.json; do
    [[ -e $file ]] && file=${file%/sweep.json} && compgen -W "${file##*/}" -- "$1"
  done
}
""",
    "zsh": """\
_search_sweeps() {
  local place=sweeps previous= word
  for word in "${words[@]}"; do
    [[ $previous == --storage ]] && place=${word/#\\~/$HOME}
    previous=$word
  done
  compadd -- $place/*/sweep.json(N:h:t)
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
""",
    "fish": """\
function _search_sweeps
  set -l place sweeps
  set -l previous ''
  for word in (commandline -opc)
    test "$previous" = --storage; and set place (string replace -r '^~' $HOME -- $word)
    set previous $word
  end
  for file in $place/*/sweep.json
    basename (dirname $file)
  end
end
""",
}
"""Functions that list the sweeps in the storage folder."""

# A shell knows a command by its first word, so `python -m search.run` is rewritten to
# `fewshot-clip run`. Everything else after `python` is left to what the shell does anyway.
_PYTHON = {
    "bash": """
_search_python() {
  local i
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${COMP_WORDS[i]} == -m ]] || continue
    if ((i + 1 == COMP_CWORD)); then
      COMPREPLY=($(compgen -W "MODULES" -- "${COMP_WORDS[COMP_CWORD]}"))
    elif [[ ${COMP_WORDS[i + 1]} == search ]]; then
      COMP_WORDS=(fewshot-clip "${COMP_WORDS[@]:i+2}")
      ((COMP_CWORD -= i + 1))
      _shtab_fewshot_clip
    elif [[ ${COMP_WORDS[i + 1]} == search.* ]]; then
      COMP_WORDS=(fewshot-clip "${COMP_WORDS[i + 1]#search.}" "${COMP_WORDS[@]:i+2}")
      ((COMP_CWORD -= i))
      _shtab_fewshot_clip
    fi
    return
  done
}
complete -o bashdefault -o default -F _search_python python python3
""",
    "zsh": """
_search_python_before=${_comps[python]:-_default}
_search_python() {
  local i
  for ((i = 2; i < CURRENT; i++)); do
    [[ $words[i] == -m ]] || continue
    if ((i + 1 == CURRENT)); then
      compadd -- MODULES
      return
    elif [[ $words[i+1] == search ]]; then
      words=(fewshot-clip "${(@)words[i+2,-1]}")
      ((CURRENT -= i))
      _shtab_fewshot_clip
      return
    elif [[ $words[i+1] == search.* ]]; then
      words=(fewshot-clip "${words[i+1]#search.}" "${(@)words[i+2,-1]}")
      ((CURRENT -= i - 1))
      _shtab_fewshot_clip
      return
    fi
  done
  $_search_python_before
}
[[ $_search_python_before == _search_python ]] || compdef _search_python python python3
""",
    "fish": """
function _search_python_line
  set -l words (commandline -opc)
  set -l i (contains -i -- -m $words); or return 1
  set -l module $words[(math $i + 1)]
  if test -z "$module"
    echo MODULES
    return
  end
  string match -q -r '^search($|\\.)' -- $module; or return 1
  set -l command (string replace -r '^search\\.?' '' -- $module)
  echo fewshot-clip $command (string escape -- $words[(math $i + 2)..-1]) (commandline -ct)
end
function _search_python
  set -l line (_search_python_line)
  if string match -q 'search *' -- $line
    string split ' ' -- $line
  else
    complete -C $line
  end
end
complete -c python -c python3 -n '_search_python_line >/dev/null' -f -a '(_search_python)'
""",
}
"""Completion after `python -m`; MODULES is replaced by the names of all modules."""


def script(shell: str) -> str:
    """The script for a shell: one parser of all commands, and what maps `python -m` to it."""
    everything = argparse.ArgumentParser(prog=_PROGRAM, add_help=False)
    commands = everything.add_subparsers()
    for name, build in COMMANDS.items():
        parser = build()
        for action in parser._actions:
            if action.dest in _VALUES:
                action.choices = tuple(_VALUES[action.dest])
            elif action.dest in _SWEEPS and not (name == "search.run" and action.dest == "name"):
                action.complete = _COMPLETE_SWEEPS  # type: ignore[attr-defined]
            elif action.dest in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        # zsh takes the description for the help text of a command, and one line is enough.
        parser.description = (parser.description or "").splitlines()[0]
        commands.add_parser(
            name.removeprefix("search."),
            parents=[parser],
            add_help=False,
            description=parser.description,
            help=parser.description,
        )
    found = shtab.complete(
        everything, shell, root_prefix="fewshot_clip", preamble=_PREAMBLES[shell]
    )
    return found + _PYTHON[shell].replace("MODULES", " ".join(("search", *COMMANDS)))


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.completion", _INTRODUCTION)
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script; 2 for a mistake."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    print(script(build_parser().parse_args(arguments).shell))
    return 0


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
