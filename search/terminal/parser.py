"""The argument parser of every command: it finds all mistakes of a command line at once."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn

from search.core.problems import UsageError
from trainables.core.credentials import take_secrets
from trainables.core.text import shortened

DEFAULT_STORAGE = "sweeps"
"""Where sweeps are stored unless --storage is given."""
_ANY = "-"
_LONGEST = 4096  # characters of a value, as many as of a path
_LONGEST_PART = 255  # bytes of a file's name


class HelpText(argparse.HelpFormatter):
    """Folds the paragraphs of descriptions to the width; indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs: list[str] = []
        continues = False
        for line in text.splitlines():
            is_prose = bool(line) and not line.startswith(" ")
            if is_prose and continues:
                paragraphs[-1] += f" {line}"
            else:
                paragraphs.append(line)
            continues = is_prose
        return "\n".join(
            line if line.startswith(" ") else textwrap.fill(line, width) for line in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """An argument parser that collects mistakes, and that has `--version`."""

    def __init__(
        self,
        command: str,
        description: str,
        fields: Callable[[], Iterable[str]] = tuple,
        **settings: Any,
    ) -> None:
        """`fields`: names that `--set` takes; an unknown option of such a name is pointed to it."""
        self._fields = fields
        super().__init__(
            prog=f"python -m {command}",
            description=description,
            formatter_class=HelpText,
            allow_abbrev=False,
            exit_on_error=False,
            **settings,
        )
        self.add_argument(
            "--version", action="version", version=f"%(prog)s {version('fewshot-clip-search')}"
        )

    def add_storage(self) -> None:
        """Add `--storage` with the text and the default that most commands have."""
        self.add_argument(
            "--storage",
            type=location,
            default=DEFAULT_STORAGE,
            metavar="PLACE",
            help="where sweeps are stored: a folder or the URI of a bucket (default: %(default)s)",
        )

    def add_model(self) -> None:
        """Add `--trial`, `--episode` and `--data`, which choose and open a sweep's model."""
        self.add_argument(
            "--trial",
            default="best",
            metavar="best|N",
            help="of a sweep: best, the winner, re-trained on a fresh draw and evaluated on the "
            "test split; N, trial N as the search trained it (default: %(default)s)",
        )
        self.add_argument(
            "--episode",
            "--cell",
            default="",
            metavar="LABEL",
            help="which of several draws, data sets or shots, e.g. seed2 (default: the first)",
        )
        self.add_argument(
            "--data",
            default=os.environ.get("FEWSHOT_DATA", ""),
            metavar="FOLDER",
            help="folder of the field's data sets (default: FEWSHOT_DATA if set, else the sweep's "
            "own)",
        )

    def add_tracking_uri(self) -> None:
        """Add `--tracking-uri` for a sweep that has run."""
        self.add_argument(
            "--tracking-uri",
            default="",
            metavar="URI",
            help="MLflow: sqlite:///FILE or http://HOST:PORT (default: the sweep's own, else "
            "MLFLOW_TRACKING_URI, else a sqlite file in the storage folder)",
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of leaving the process, so that `parse` can go on."""
        raise argparse.ArgumentError(None, message)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse a command line; raises `UsageError` with every mistake in it."""
        options, problems = self.parse(args)
        if problems:
            raise UsageError([problem for problem, _ in problems])
        return options

    def parse(
        self, arguments: Sequence[str] | None = None
    ) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
        """Parse a command line.

        Returns:
            The options that could be read, and every mistake with the option that it is about
            (empty for unknown ones).
        """
        left, problems = self._without_damage(sys.argv[1:] if arguments is None else arguments)
        while True:
            try:
                options, unknown = self.parse_known_args(left)
                break
            except argparse.ArgumentError as error:
                spellings = (error.argument_name or "").split("/")
                problem = self._sentence(spellings[0], error.message), spellings[0]
                shorter = self._without_wrong(left, spellings)
                if problem not in problems:
                    problems.append(problem)
                elif len(shorter) == len(left):
                    return argparse.Namespace(), problems
                # Any value for a positional argument lets the parser find the other mistakes.
                left = [*left, _ANY] if len(shorter) == len(left) else shorter
        if words := [word for word in unknown if word != _ANY]:
            problems.append((self._unknown(words), ""))
        return options, problems

    def without_unknown_values(self, words: Sequence[str]) -> list[str]:
        """Return the words without those that follow an unknown option: its value would pass for
        a positional argument."""
        known = {name for action in self._actions for name in action.option_strings}
        kept: list[str] = []
        previous = ""
        for word in words:
            is_stray = previous.startswith("--") and "=" not in previous and previous not in known
            if not is_stray or word.startswith("-"):
                kept.append(word)
            previous = word
        return kept

    def _without_wrong(self, arguments: Sequence[str], spellings: Sequence[str]) -> list[str]:
        """Remove the first use of an option that has no value or a wrong one; every use, if each
        can be read."""
        kind = next((a.type for a in self._actions if {*a.option_strings} & {*spellings}), None)
        uses = [*_uses(arguments, spellings)]
        wrong = [use for use in uses if use.value is None or not _can_be_read(kind, use.value)]
        removed = {n for use in wrong[:1] or uses for n in use.words}
        return [word for n, word in enumerate(arguments) if n not in removed]

    def _without_damage(self, arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Remove arguments that are no text, each with the option before it."""
        kept: list[str] = []
        problems = []
        for argument in arguments:
            name = argument.partition("=")[0] if argument.startswith("--") else ""
            if name and argument.endswith("=--"):  # argparse would drop these dashes
                problems.append((f"{name} must not be '--'. Use another value.", name))
                continue
            if is_text(argument):
                kept.append(argument)
                continue
            if not name and kept and _is_option(kept[-1]):
                name = kept.pop()
            problems.append(
                (
                    f"{name or 'An argument'} must be UTF-8 text without control "
                    f"characters, got {quoted(argument.removeprefix(f'{name}='))}. "
                    "Use another value.",
                    name,
                )
            )
        return kept, problems

    def _sentence(self, name: str, message: str) -> str:
        if message.startswith("expected one argument"):
            return f"{name} needs a value. See --help."
        if name.startswith("--") and message.startswith("must "):
            return f"{name} {message}."
        text = f"argument {name}: {message}" if name else message
        return f"{text[0].upper()}{text[1:]}. See --help."

    def _unknown(self, words: Sequence[str]) -> str:
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        known = [name.lstrip("-") for action in shown for name in action.option_strings]
        options = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
        near = [match for word in options for match in difflib.get_close_matches(word, known, n=1)]
        fields = {*self._fields()} & {word.replace("-", "_") for word in options}
        if fields:
            hint = f" Use --set {' and --set '.join(f'{name}=VALUE' for name in sorted(fields))}."
        else:
            hint = f" Did you mean --{' and --'.join(near)}?" if near else ""
        return f"Unrecognized arguments: {' '.join(map(shortened, words))}.{hint} See --help."


def is_text(argument: str) -> bool:
    """Whether an argument is text that files, JSON and terminals can hold."""
    return not re.search("[\0-\x08\n-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]", argument)


def text(value: str) -> str:
    """Parse a value that must not be empty."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"must not be empty, got {quoted(value)}; omit the option")
    if any(len(part.encode()) > _LONGEST_PART for part in value.split("/")):
        raise argparse.ArgumentTypeError(
            f"must have at most {_LONGEST_PART} bytes between slashes, got {quoted(value)}"
        )
    if len(value) > _LONGEST:
        raise argparse.ArgumentTypeError(
            f"must be at most {_LONGEST} characters, got {quoted(value)}"
        )
    return value


def location(value: str) -> str:
    """Parse where something is stored; its secrets stay in the environment of this process."""
    return take_secrets(text(value))


def integer(value: str) -> int:
    """Parse a whole number."""
    try:
        return int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {quoted(value)}") from None


def number(value: str) -> float:
    """Parse a number."""
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {quoted(value)}") from None


def integers(value: str) -> tuple[int, ...]:
    """Parse whole numbers separated by commas."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers separated by commas, e.g. 1,2,3, got {quoted(value)}"
        ) from None


def duration(value: str) -> float:
    """Parse a length of time, in seconds: `90`, `10m`, `1.5h`, `2d`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", value, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be a length of time, e.g. 90, 10m or 1.5h, got {quoted(value)}"
        )
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]


def quoted(value: str) -> str:
    """A wrong value as messages show it."""
    return f"'{shortened(value)}'"


def _is_option(argument: str) -> bool:
    return argument.startswith("--") or bool(re.match(r"-(?![\d.])\S", argument))


@dataclass(frozen=True)
class _Use:
    """An option in a command line."""

    words: range
    value: str | None
    """The text after it; None for a flag, or if it is missing."""


def _uses(arguments: Sequence[str], spellings: Sequence[str]) -> Iterator[_Use]:
    for n, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in spellings:
            continue
        if equals:
            yield _Use(range(n, n + 1), value)
        elif (follows := arguments[n + 1 : n + 2]) and not _is_option(follows[0]):
            yield _Use(range(n, n + 2), follows[0])
        else:
            yield _Use(range(n, n + 1), None)


def _can_be_read(kind: object, value: str) -> bool:
    try:
        if callable(kind):
            kind(value)
    except (argparse.ArgumentTypeError, TypeError, ValueError):
        return False
    return True
