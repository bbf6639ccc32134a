"""`python -m search.completion`: a script that lets bash complete the commands of this project."""

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
    export,
    predict,
    rename,
    report,
    run,
    spaces,
    status,
    sync,
)
from search import list as listing
from search.core.config import KEEP
from search.core.problems import UsageError
from search.core.pruners import PRUNERS
from search.core.samplers import SAMPLERS
from search.exporting.formats import FORMATS
from search.terminal.console import end_with_the_reader, print_errors
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
    "search.doctor": doctor.build_parser,
    "search.spaces": spaces.build_parser,
}
"""What there is to complete."""

_INTRODUCTION = """\
Print a script for bash that completes `python -m search.COMMAND`: commands, options, the names of
spaces, samplers and data sets, sweeps in the storage folder. For this shell, or in ~/.bashrc:

  eval "$(python -m search.completion bash)\""""

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

_PREAMBLE = """\
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
"""
# bash knows a command by its first word: python's own arguments are left to what bash does anyway.
_DISPATCH = """
_search_python() {
  local i
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == -m ]]; then
      if ((i + 1 == COMP_CWORD)) || [[ ${COMP_WORDS[i + 1]} == search.* ]]; then
        COMP_WORDS=(search "${COMP_WORDS[@]:i+1}")
        ((COMP_CWORD -= i))
        _shtab_search
      fi
      return
    fi
  done
}
complete -o bashdefault -o default -F _search_python python python3
"""


def bash_script() -> str:
    """The script: `python -m search.X` becomes the command X of one parser of all commands."""
    everything = argparse.ArgumentParser(prog="search", add_help=False)
    commands = everything.add_subparsers()
    for name, build in COMMANDS.items():
        parser = build()
        for action in parser._actions:
            if action.dest in _VALUES:
                action.choices = tuple(_VALUES[action.dest])
            elif action.dest in _SWEEPS and not (name == "search.run" and action.dest == "name"):
                action.complete = {"bash": "_search_sweeps"}  # type: ignore[attr-defined]
            elif action.dest in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        commands.add_parser(name, parents=[parser], add_help=False, help=parser.description)
    script = shtab.complete(everything, "bash", root_prefix="search", preamble=_PREAMBLE)
    # The last line is for a program called `search`, which there is not.
    kept = [line for line in script.splitlines() if not line.startswith("complete ")]
    return "\n".join(kept) + _DISPATCH


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.completion", _INTRODUCTION)
    parser.add_argument("shell", choices=("bash",), help="the shell")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script; 2 for a mistake."""
    try:
        build_parser().parse_args(arguments)
    except UsageError as error:
        print_errors(error.problems)
        return 2
    print(bash_script())
    return 0


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
