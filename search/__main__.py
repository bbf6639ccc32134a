"""`python -m search` or `fewshot-clip`: lists the commands, and runs one of them."""

from __future__ import annotations

import runpy
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from search import HELP, answer_help


def commands() -> dict[str, str]:
    """Every command with the first sentence of its help text, e.g. `{"run": "Start a sweep."}`."""
    found = {}
    for path in sorted(HELP.glob("search.*.txt")):
        if path.stem.endswith(".all"):
            continue
        introduction = path.read_text(encoding="utf-8").split("\n\n")[1]
        sentence = " ".join(introduction.split()).partition(". ")[0]
        found[path.stem.partition(".")[2]] = sentence.removesuffix(".").partition(":")[0] + "."
    return found


def overview(program: str) -> str:
    """The list of all commands, as `--help` prints it."""
    known = commands()
    width = max(map(len, known))
    indent = " " * (width + 4)
    lines = (
        textwrap.fill(f"  {name:{width}}  {sentence}", 80, subsequent_indent=indent)
        for name, sentence in known.items()
    )
    return "\n".join(
        [
            f"usage: {program} COMMAND [options]",
            "",
            "Search hyper-parameters for few-shot tuning of CLIP-like models.",
            "",
            *lines,
            "",
            f"`{program} COMMAND --help` explains a command.",
            f"A first sweep: `{program} run --space rmt`",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit code, 2 for an unknown one."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    program = "fewshot-clip" if Path(sys.argv[0]).stem == "fewshot-clip" else "python -m search"
    if not given or given[0] in ("-h", "--help"):
        print(overview(program))
        return 0
    name, *rest = given
    if name not in commands():
        print(
            f"error: the command must be one of {', '.join(commands())}, got '{name[:60]}': "
            f"see {program} --help.",
            file=sys.stderr,
        )
        return 2
    sys.argv = [f"search.{name}", *rest]
    answer_help(f"search.{name}")
    runpy.run_module(f"search.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
