"""The command line of `search.run`: one option per field of a sweep's configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, get_args

from search.core.config import SweepConfig, differences, option
from search.core.enqueue import read_configurations
from search.core.problems import UsageError
from search.core.pruners import PRUNERS
from search.core.samplers import GRID, SAMPLERS
from search.core.sweep_file import read_options
from search.core.task_options import absolute_dataset, settle_backbone, settle_bundle, settle_draws
from search.terminal.option_groups import COMMON, GROUPS
from search.terminal.option_values import PARSERS
from search.terminal.parser import Parser
from spaces.registry import SPACES, SpaceEntry, SpaceError, find_space
from spaces.settings import Settings, SettingsError
from trainables.all_shots import ALL, with_all_shots
from trainables.core.plugins import PluginError, plugin_sources, use_plugins
from trainables.core.protocols import Objective, Validation
from trainables.core.storage import StorageError
from trainables.data.folder import folds_of
from trainables.data.registry import DATASETS
from trainables.fields import field_docs, fields_of
from trainables.methods.base import Preset
from trainables.methods.registry import METHODS
from trainables.trial import TaskSpec

_INTRODUCTION = """\
Search the hyper-parameters of a few-shot tuning method for a CLIP model.

Without options, it searches mask tuning (R-AMT) on real handwritten digits with an embedded tiny
model: no GPU, no download, no data needed. Trials are compared on few-shot validation images; at
the end the winner is trained on fresh draws and evaluated once on the test split."""
_EXAMPLES = """\
examples:
  python -m search.run --space rmt --backbone ViT-B-16 --gpus-per-trial 0.25
  python -m search.run --space rmt+taskres          masks, then a residual
  python -m search.run sweep.yaml --shots 4         the options of a file
  python -m search.run --resume NAME                an interrupted sweep
  python -m search.run --resume NAME --trials 100   more trials"""

_NOT_FIELDS = {
    "shots_file": "Published draws: a JSON file, with {dataset}, {shots} and {seed} in its name if "
    "there are several.",
    "resume": "Resume this sweep with its stored settings.",
    "retry_failed": "Run failed trials again, with their original numbers.",
    "no_report": "Do not write a report at the end; python -m search.report NAME writes one at any "
    "time.",
    "notify": "Webhook that receives a message at the end (Slack, Teams, Discord or your own); it "
    "is not stored (default: FEWSHOT_NOTIFY if set, which other users of this machine do not see).",
    "dry_run": "Print the settings, the first trials, and an estimate of time and memory, without "
    "running or writing anything.",
}
_CHOICES: Mapping[str, Iterable[str]] = {
    "space": SPACES,
    "datasets": DATASETS,
    "sampler": tuple(SAMPLERS),
    "pruner": tuple(PRUNERS),
    "validation": get_args(Validation),
    "objective": get_args(Objective),
    "preset": get_args(Preset),
}
_OLD_SPELLINGS = {
    "init_from": "--start",
    "second_objective": "--also",
    "generate_split": "--make-split",
    "study_storage": "--ledger",
}
"""Hidden aliases of renamed options, for one release."""
_BY_SPACE = ("trials", "seeds", "validation", "objective", "pruner", "select")
"""Options whose defaults depend on the space."""
_TASK = tuple(f.name for f in fields(TaskSpec))
_DATA = tuple(name for name in _TASK if name not in ("class_names", "prompt", "objective"))
"""Options of the task without which its data cannot be checked."""
_SETTINGS = tuple(f.name for f in fields(Settings))
_BY_FIELD = ("set", "range", "choice", "grid")
"""Options that may be given several times, once per field."""
_REPEATED = (*_BY_FIELD, "plugin", "prompt")


@dataclass(frozen=True)
class Request:
    """A parsed command line."""

    config: SweepConfig
    """The configuration, with defaults in place of invalid values."""
    problems: tuple[str, ...]
    """Every error in the command line itself."""
    dry_run: bool
    """Whether to describe the sweep instead of running it."""
    retry_failed: bool
    """Whether to run failed trials again."""
    task_is_known: bool
    """Whether all options of the task were valid, so that its data can be checked."""
    notify: str = ""
    """Webhook that receives a message at the end; empty if there is none."""


def build_parser(everything: bool = True) -> Parser:
    """Build the parser; its help text has all options, or the common ones.

    Options have no defaults, so that omitted options are absent.
    """
    parser = Parser(
        "search.run",
        _INTRODUCTION,
        lambda: {name for method in METHODS for name in fields_of(method)},
        epilog=_EXAMPLES,
        usage="%(prog)s [OPTION]... [FILE.yaml]",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--help-all", action="help", help="show every option and exit")
    records = (SweepConfig, TaskSpec, Settings)
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE.yaml",
        help="a file with options as keys, such as the sweep.yaml in a sweep's folder; options "
        "after it override it",
    )
    docs = {name: doc for record in records for name, doc in field_docs(record).items()}
    docs |= _NOT_FIELDS
    kinds = {f.name: str(f.type) for record in records for f in fields(record)}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, metavar in names.items():
            settings: dict[str, Any] = {"dest": name}
            if metavar:
                settings["type"] = PARSERS.get(name) or PARSERS[kinds.get(name, "str")]
            else:
                settings["action"] = "store_true"
            if name in _REPEATED:
                settings["action"] = "append"
            shown = settings | ({"metavar": metavar} if metavar else {})
            is_shown = everything or name in COMMON
            text = _help(name, docs[name]) if is_shown else argparse.SUPPRESS
            group.add_argument(option(name), help=text, **shown)
            if name in _OLD_SPELLINGS:
                parser.add_argument(_OLD_SPELLINGS[name], help=argparse.SUPPRESS, **settings)
    return parser


def configure(arguments: Sequence[str]) -> SweepConfig:
    """Return the configuration of a command line; raises `UsageError`.

    With --resume the stored configuration is the starting point, and an option that would change
    the sweep's identity is refused.
    """
    request = read_request(arguments)
    if request.problems:
        raise UsageError(request.problems)
    return request.config


def read_request(arguments: Sequence[str] | None = None) -> Request:
    """Parse a command line and collect all its errors."""
    if failed := _load_plugins(()):  # of the environment: the help texts have their names
        raise UsageError(failed)
    given, mistakes = _parse(arguments)
    problems = [problem for problem, _ in mistakes]
    if "plugin" in given:
        given["plugin"] = tuple(os.path.realpath(os.path.expanduser(p)) for p in given["plugin"])
        problems += _load_plugins(given["plugin"])
    unread = {name.removeprefix("--").replace("-", "_") for _, name in mistakes}
    task_is_known = not unread & {"", "dataset", "init_from", "start", "data", "resume", *_DATA}
    dry_run, retry_failed = given.pop("dry_run", False), given.pop("retry_failed", False)
    url = given.pop("notify", os.environ.get("FEWSHOT_NOTIFY", ""))
    given |= {"report": False} if given.pop("no_report", False) else {}
    settle_draws(given, problems)
    if "second_objective" in given:
        given.setdefault("pruner", "none")
    if "grid" in given:
        given = {"sampler": GRID, "pruner": "none"} | given
    if {"init_from", "second_objective"} & given.keys():
        given.setdefault("select", "best")
    base, stored = SweepConfig(), None
    resume = given.pop("resume", None)
    if resume is not None:
        if given.get("name", resume) != resume:
            problems.append(
                f"--resume continues '{resume}', so --name must be omitted, got '{given['name']}'."
            )
        if given.pop("test_folds", 0):
            problems.append(
                "--test-folds cannot be used with --resume. Run the first command again, which "
                "resumes all folds, or resume one fold without it."
            )
        try:
            stored = _stored(given.get("storage", base.storage), resume)
            base = stored
            problems += _missing_plugins(stored, given)
        except (UsageError, StorageError) as error:
            problems += error.problems if isinstance(error, UsageError) else [str(error)]
            task_is_known = False
    else:
        with suppress(SpaceError):  # `SweepConfig.problems` reports it
            effort = find_space(given.get("space", base.space))
            _settle_folds(given, effort)
            defaults = {name: getattr(effort, name) for name in _BY_SPACE if name != "trials"}
            given = defaults | given
        settle_backbone(given)
        if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            given.setdefault("experiment", experiment)
    if "enqueue" in given:
        try:
            place = given.get("storage", base.storage)
            given["enqueue"] = read_configurations(given["enqueue"], place)
        except (UsageError, StorageError) as error:
            problems += error.problems if isinstance(error, UsageError) else [str(error)]
            del given["enqueue"]
    if "init_from" in given:
        from search.evaluation.winner import read_start

        try:
            start = read_start(given.pop("init_from"), given.get("storage", base.storage))
            base = replace(base, init_from=start, task=base.task if stored else start.task)
        except UsageError as error:
            problems += error.problems
            task_is_known = False
    config = _with_defaults(given, base)
    if stored is None and "trials" not in given:
        config = replace(config, trials=_trials(config))
    if stored is not None:
        problems += _changes(stored, config)
    found = tuple(dict.fromkeys(problems))
    return Request(config, found, dry_run, retry_failed, task_is_known, url)


def _load_plugins(files: tuple[str, ...]) -> list[str]:
    """Load plugin files, and those of the environment; return problems."""
    try:
        use_plugins(files)
    except PluginError as error:
        return [str(error)]
    return []


def _missing_plugins(stored: SweepConfig, given: Mapping[str, Any]) -> list[str]:
    """A record makes no code run: the user names it again."""
    known = plugin_sources()
    return [
        f"A sweep with a plugin is resumed with it. Add --plugin {path}."
        for path in stored.plugin
        if "plugin" not in given and os.path.basename(path) not in known
    ]


def _parse(arguments: Sequence[str] | None) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The options given, and every mistake with the option that it is about. Those of the command
    line replace those of a file; repeated options do so field by field."""
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else arguments
    options, mistakes = parser.parse(parser.without_unknown_values(words))
    given = vars(options)
    mistakes += _by_field(given)
    file = given.pop("file", None)
    if file is None:
        return given, mistakes
    try:
        there, mistakes_there = parser.parse(read_options(file))
    except UsageError as error:
        return given, [*mistakes, *((problem, "") for problem in error.problems)]
    base = vars(there)
    mistakes += [*mistakes_there, *_by_field(base)]
    replaced = {field for name in _BY_FIELD for field in given.get(name, {})}
    for name in _BY_FIELD:
        kept = {f: value for f, value in base.get(name, {}).items() if f not in replaced}
        if found := kept | given.get(name, {}):
            given[name] = found
        base.pop(name, None)
    return base | given, mistakes


def _by_field(given: dict[str, Any]) -> list[tuple[str, str]]:
    """Make the uses of repeated options a dictionary by field; return mistakes."""
    mistakes = []
    for name in _BY_FIELD:
        if name in given:
            pairs = given[name]
            given[name] = dict(pairs)
            seen = [field for field, _ in pairs]
            mistakes += [
                (f"{option(name)} must be given once per field, got {field} twice.", option(name))
                for field in given[name]
                if seen.count(field) > 1
            ]
    return mistakes


def _with_defaults(given: dict[str, Any], base: SweepConfig) -> SweepConfig:
    """Build the configuration from options, the base and environment variables, in this order."""
    given.setdefault("address", os.environ.get("RAY_ADDRESS", base.address))
    given.setdefault("tracking_uri", base.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))
    given.setdefault("data", base.data or os.environ.get("FEWSHOT_DATA", ""))
    if given["data"]:
        given["data"] = os.path.abspath(os.path.expanduser(given["data"]))
    if "datasets" in given:
        given["datasets"] = [absolute_dataset(name) for name in given["datasets"]]
        settle_bundle(given)
    if "backbone" in given:
        from trainables.backbones.registry import absolute_spec

        given["backbone"] = absolute_spec(given["backbone"])
    task = {key: given.pop(key) for key in _TASK if key in given}
    everything = task.get("shots") == ALL
    if everything:
        del task["shots"]
    task = {key: tuple(v) if isinstance(v, list) else v for key, v in task.items()}
    whole = replace(base.task, **task)
    if everything:
        # A fold may have more images than the whole data set has outside its generated test split.
        folds = [f for d in whole.datasets for f in folds_of(d, given.get("test_folds", 0))]
        drawn = replace(whole, datasets=tuple(folds) or whole.datasets)
        drawn = with_all_shots(drawn, given["data"], task.get("draws"))
        whole = replace(drawn, datasets=whole.datasets)
    own = {key: given.pop(key) for key in _SETTINGS if key in given}
    settings = replace(base.settings, **own)
    return replace(base, task=whole, settings=settings, **given)


def _trials(config: SweepConfig) -> int:
    """The default number of trials: that of the space, of the grid, or of the trials in the queue
    if nothing is searched."""
    try:
        if config.settings.grid:
            return config.settings.combinations
        space = config.general_space
        return find_space(config.space).trials if space.first_parameters else len(space.queue)
    except (SpaceError, SettingsError):  # `SweepConfig.problems` reports it
        return SweepConfig().trials


def _stored(storage: str, name: str) -> SweepConfig:
    from search.core.sweep_folder import find_sweep

    return find_sweep(name, storage).config


def _changes(stored: SweepConfig, config: SweepConfig) -> list[str]:
    found = differences(stored.identity(), config.identity())
    return [
        f"A resumed sweep must keep its settings. {line}. Omit the option, or start another sweep "
        "with --name."
        for line in found
    ]


def _settle_folds(given: dict[str, Any], effort: SpaceEntry) -> None:
    """Validate inside the shots of one draw by default if the images are the user's own, where
    every labelled one counts."""
    own = all(spec.startswith("folder:") for spec in given.get("datasets", ("digits",)))
    one_stage = effort.validation == "pooled" and "init_from" not in given
    shots = given.get("shots", SweepConfig().task.shots)
    several = shots == ALL or min(shots, default=0) > 1
    if own and one_stage and several and "seeds" not in given:
        given.setdefault("validation", "folds")
    if given.get("validation") == "folds":
        given.setdefault("seeds", (1,))


def _help(name: str, doc: str) -> str:
    """Return the help text of an option: its docstring, choices and default."""
    words = doc.removesuffix(".")
    if name in _CHOICES:
        words += f". One of {', '.join(_CHOICES[name])}"
    if name in _BY_SPACE:
        words += f" (default: {_by_space(name)})"
    elif "(default:" not in words and name not in _NOT_FIELDS:
        default = _defaults().get(name)
        if default not in (None, "", {}, []) and default is not False:
            words += f" (default: {_words(default)})"
    return words.replace("%", "%%")


@cache
def _defaults() -> dict[str, Any]:
    """The default of every option."""
    plain = SweepConfig().to_dict()
    return {**plain, **plain["task"], **plain["settings"]}


def _by_space(name: str) -> str:
    """Format a default that depends on the space, e.g. `1 for rmt, vpt; otherwise 1,2,3`."""
    spaces: dict[str, list[str]] = {}
    for space, entry in SPACES.items():
        spaces.setdefault(_words(getattr(entry, name)), []).append(space)
    usual = max(spaces, key=lambda value: len(spaces[value]))
    named = [f"{value} for {', '.join(known)}" for value, known in spaces.items() if value != usual]
    return "; ".join([*named, f"otherwise {usual}"])


def _words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
