"""`python -m search.spaces`: lists the search spaces, or the fields of one with their ranges."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from rich.table import Table

from search.core.problems import UsageError
from search.core.task_options import absolute_dataset
from search.terminal.console import end_with_the_reader, open_console
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser, integer
from search.terminal.ranges import search_ranges, value_words
from spaces.auto import MethodChoice
from spaces.base import Space
from spaces.declared import DeclaredSpace
from spaces.pipeline import PipelineSpace
from spaces.registry import SPACES, SpaceError, find_space
from trainables.all_shots import ALL, with_all_shots
from trainables.core.text import did_you_mean
from trainables.data.base import DataError
from trainables.data.registry import DATASETS, PREFIXES
from trainables.methods.base import Preset, TaskFacts, Tower
from trainables.presets import task_facts
from trainables.trial import TaskSpec

_INTRODUCTION = """\
List the search spaces. With a name, list the fields that the space searches, with range and
condition, and those that can be set or searched with options of search.run; each with its meaning
and its value in every preset."""
_CLASSES = 10  # to know the number of training images, on which few presets depend


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.spaces", _INTRODUCTION)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a space, e.g. rmt or rmt+taskres")
    parser.add_argument(
        "--dataset",
        default="digits",
        metavar="NAME",
        help="show the presets' values for this data set, also folder:PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--shots",
        type=_shots,
        default=16,
        metavar="N",
        help=f"and this number of shots, of {_CLASSES} classes; all: every labelled image of the "
        "data set (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("FEWSHOT_DATA", ""),
        metavar="FOLDER",
        help="folder of the field's data sets, for --shots all (default: FEWSHOT_DATA if set)",
    )
    parser.add_argument(
        "--tower",
        choices=get_args(Tower),
        default="vit",
        help="and this family of image towers (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print; 0 on success, 2 for a mistake."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    console = open_console()
    options = build_parser().parse_args(arguments)
    tables = [_spaces_table()] if options.name is None else fields_tables(_open(options))
    for table in tables:
        console.print(table)
    return 0


def _shots(value: str) -> int | str:
    """Parse a number of shots, or `all`."""
    if value.strip() == ALL:
        return ALL
    try:
        return integer(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or all") from None


def _open(options: argparse.Namespace) -> Space:
    """The space for the task that the options describe; raises `UsageError`."""
    problems, shots = [], options.shots
    dataset = absolute_dataset(options.dataset)
    is_path = dataset.startswith(tuple(PREFIXES))
    if not is_path and dataset not in DATASETS:
        problems.append(did_you_mean("data set", dataset, (*DATASETS, *PREFIXES)))
    if shots != ALL and shots < 1:
        problems.append(f"--shots must be at least 1, got {shots}. Use e.g. 16.")
    try:
        entry = find_space(options.name)
    except SpaceError as error:
        problems.append(str(error))
    if problems:
        raise UsageError(problems)
    if shots != ALL and not is_path:
        return entry.build(TaskFacts(dataset, shots, shots * _CLASSES, options.tower))
    task = TaskSpec((dataset,), "tiny", (1 if shots == ALL else shots,), (1,))
    if shots == ALL:
        task = with_all_shots(task, options.data, None)
    try:
        return entry.build(task_facts(task, task.source(options.data), options.tower))
    except DataError as error:
        raise UsageError([str(error)]) from error


def _spaces_table() -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("space", "trials", "draws", "searched fields"):
        table.add_column(heading, overflow="fold")
    for name, entry in SPACES.items():
        space = entry.build(TaskFacts("digits", 16, 16 * _CLASSES))
        parameters = ", ".join(search_ranges(space))
        table.add_row(name, str(entry.trials), str(len(entry.seeds)), parameters)
    return table


def fields_tables(space: Space) -> Iterator[Table]:
    """Per stage, one table of the fields that are searched, and one of the others."""
    stages: tuple[object, ...] = (space,)
    if isinstance(space, PipelineSpace):
        stages = space.stages
    if isinstance(space, MethodChoice):
        stages = space.spaces
    for stage in stages:
        if not isinstance(stage, DeclaredSpace):
            yield _ranges_table(space)
            continue
        found = search_ranges(stage)
        searched = [name for name in stage.fields if name in found]
        others = [name for name in stage.fields if name not in found]
        prefix = f"{stage.name}: " if len(stages) > 1 else ""
        yield _table(f"{prefix}searched", stage, searched, found)
        yield _table(f"{prefix}others, for --set, --range, --choice and --grid", stage, others, {})


def _ranges_table(space: Space) -> Table:
    """The table of a space that declares no fields."""
    table = Table("parameter", "range", box=None, pad_edge=False, title_justify="left")
    for name, (words, _) in search_ranges(space).items():
        table.add_row(name, words)
    return table


def _table(
    title: str, stage: DeclaredSpace, names: Sequence[str], found: dict[str, tuple[str, bool]]
) -> Table:
    presets = _presets(stage)
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("field", *(("range",) if found else ()), *presets, "when", "meaning"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("field", *presets))
    for name in names:
        field = stage.fields[name]
        choices = f" One of {', '.join(map(value_words, field.choices))}." if not found else ""
        table.add_row(
            name,
            *((found[name][0],) if found else ()),
            *(value_words(values[name]) for values in presets.values()),
            stage.condition(name).words,
            field.doc + (choices if field.choices and field.kind is not bool else ""),
        )
    return table


def _presets(stage: DeclaredSpace) -> dict[str, dict[str, object]]:
    """The fields' values in every preset."""
    found = {}
    for preset in get_args(Preset):
        found[preset] = stage.values(replace(stage, preset=preset).first)
    return found


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
