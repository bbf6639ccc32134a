"""What a person can ask for on the command line of `search.run`, as a sweep's configuration."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from search.core.config import SweepConfig, differences, is_bundle
from search.core.problems import UsageError
from search.core.pruners import PRUNERS
from search.core.samplers import SAMPLERS
from search.driver.preflight import load_record
from search.evaluation.winner import read_start
from spaces.registry import SPACES, SpaceEntry, SpaceError, find_space
from trainables.backbones.registry import absolute_spec
from trainables.credentials import take_secrets
from trainables.data.base import DataError
from trainables.data.bundle import open_bundle
from trainables.data.few_shot import absolute_draws
from trainables.data.registry import BASE_TASKS, DATASETS, PREFIXES
from trainables.storage import join, open_storage

_TASK = (
    *("datasets", "backbone", "shots", "seeds", "protocol"),
    *("draws", "generate_split", "skip_unreadable"),
)
_INTRODUCTION = """\
Search the hyper-parameters of a few-shot tuning method for a CLIP model.

With no options it searches mask tuning (R-AMT) on real handwritten digits with an embedded tiny
model: no GPU, no download, no data needed. Trials are judged on few-shot validation images; at
the end the winner is trained on fresh draws and scored once on the test split."""
_EXAMPLES = """\
examples:
  python -m search.run --space rmt                      the default, about three minutes
  python -m search.run --space taskres --trials 60
  python -m search.run --space rmt --backbone ViT-B-16 --device cuda --gpus-per-trial 0.25
  python -m search.run --space rmt+taskres              masks, then a residual on what they leave
  python -m search.run --space taskres --init-from NAME     a residual on the winning masks of NAME
  python -m search.run --resume NAME                    go on with an interrupted sweep
  python -m search.run --resume NAME --trials 100       add trials to a finished one"""


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of leaving the process; every command tells its version."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument(
            "--version", action="version", version=f"%(prog)s {version('fewshot-clip-search')}"
        )

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        raise UsageError([f"{message[0].upper()}{message[1:]}. See --help."])


def build_parser() -> argparse.ArgumentParser:
    """All options. None has a default here: an option that is absent was not given."""
    default = SweepConfig()
    parser = Parser(
        prog="python -m search.run",
        description=_INTRODUCTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what is searched")
    what.add_argument(
        "--space",
        metavar="NAME",
        help=f"what may vary: {', '.join(SPACES)}; several with + between them are stages, each "
        f"trained on the backbone that the one before has changed (default: {default.space})",
    )
    what.add_argument(
        "--init-from",
        metavar="SWEEP",
        help="begin every trial with the winner of this finished sweep, by name or folder, and "
        "search what comes after it; the task is that sweep's",
    )
    what.add_argument(
        "--dataset",
        dest="datasets",
        type=names,
        metavar="NAME,...",
        help=f"{', '.join(DATASETS)}; all11 for the field's eleven; folder:PATH for a folder of "
        "class folders or a table (csv, parquet) of path and label; bundle:FILE for features that "
        f"somebody has computed (default: {','.join(default.task.datasets)})",
    )
    what.add_argument(
        "--data",
        metavar="FOLDER",
        help="where the field's data sets are, in its usual layout (default: FEWSHOT_DATA where "
        "it is set); python -m search.doctor checks it",
    )
    what.add_argument(
        "--backbone",
        metavar="SPEC",
        help="tiny; an open_clip architecture with its tag or a local file (ViT-B-16, "
        "ViT-B-32:laion2b_s34b_b79k, RN50:weights.pt); openai:FILE for a state dict in OpenAI's "
        "layout; MASKS.safetensors@SPEC for one of these with the masks of an artifact folded in, "
        "MASKS.pth.tar@SPEC with those of a checkpoint of R-AMT's code "
        f"(default: {default.task.backbone})",
    )
    what.add_argument(
        "--shots",
        type=_integers,
        metavar="N,...",
        help="training images a class; min(N, 4) more a class are for validation "
        f"(default: {','.join(map(str, default.task.shots))}; of a bundle, all it has)",
    )
    what.add_argument(
        "--seeds",
        type=_integers,
        metavar="N,N,...",
        help="few-shot draws that a trial is averaged over (default: "
        f"{_by_space(lambda entry: ','.join(map(str, entry.seeds)))})",
    )
    what.add_argument(
        "--protocol",
        metavar="NAME",
        help="few-shot; base-to-new: train on the first half of the classes, judge both halves; "
        "domain-generalization: train on the first data set, judge its shifts; cross-dataset: "
        f"train on the first, judge the others (default: {default.task.protocol})",
    )
    what.add_argument(
        "--per-task",
        action="store_true",
        help="a search of its own for every data set and number of shots, instead of one "
        "configuration for all",
    )
    what.add_argument(
        "--draws",
        metavar="RULE",
        help="how few-shot images are drawn: seeded (reproducible from the seed on any machine) or "
        f"coop (the field's rule, its published draws) (default: {default.task.draws})",
    )
    what.add_argument(
        "--shots-file",
        metavar="PATTERN",
        help="published draws: a JSON file, with {dataset}, {shots} and {seed} in its name where "
        "there are several",
    )
    what.add_argument(
        "--generate-split",
        action="store_true",
        help="where a split file is missing, make a split by the published rule",
    )
    what.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave unreadable images out",
    )
    how = parser.add_argument_group("how it is searched")
    how.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="finished trials to reach, earlier runs counted in (default: "
        f"{_by_space(lambda entry: str(entry.trials))})",
    )
    how.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"how trials are proposed: {', '.join(SAMPLERS)} (default: {default.sampler})",
    )
    how.add_argument(
        "--pruner",
        metavar="NAME",
        help=f"how bad trials are stopped early: {', '.join(PRUNERS)} (default: {default.pruner})",
    )
    how.add_argument(
        "--second-objective",
        metavar="METRIC:DIRECTION",
        help="a second objective: a metric that trials report at their end, and max or min, e.g. "
        "mask/sparsity:max; no trial is stopped early then, and the report shows the front",
    )
    how.add_argument(
        "--time-budget",
        type=_seconds,
        metavar="TIME",
        help="search no longer than this: 90, 10m, 1.5h; unfinished trials are kept (default: "
        "no limit)",
    )
    how.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the sampler and of the training; the same seed gives the same trials when "
        f"they run one at a time (default: {default.seed})",
    )
    how.add_argument(
        "--eval-seeds",
        type=int,
        metavar="N",
        help="fresh draws the winner is re-trained on before the test split is read (default: "
        f"{default.eval_seeds})",
    )
    where = parser.add_argument_group("where it is kept")
    where.add_argument(
        "--name", metavar="NAME", help="name of the sweep (default: made from its settings)"
    )
    where.add_argument(
        "--resume", metavar="NAME", help="go on with this sweep, with the settings it has"
    )
    where.add_argument(
        "--storage",
        type=take_secrets,
        metavar="PLACE",
        help="where sweeps are kept: a folder, or a URI as s3://BUCKET/PATH or gs://BUCKET/PATH "
        f"(default: {default.storage})",
    )
    where.add_argument(
        "--ledger",
        metavar="PLACE",
        help="where the study is kept: journal (in the sweep's folder), or "
        f"postgresql://USER@HOST/DATABASE (default: {default.ledger})",
    )
    where.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="write no report at the end; `python -m search.report NAME` makes one at any time",
    )
    where.add_argument(
        "--register",
        metavar="MODEL",
        help="at the end, make the winner a version of this registered model in MLflow, with the "
        "alias champion; `python -m search.export NAME --register MODEL` does it at any time",
    )
    where.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow: sqlite:///FILE, http://HOST:PORT, or none (default: MLFLOW_TRACKING_URI "
        "where it is set, else a sqlite file in the storage folder)",
    )
    machine = parser.add_argument_group("what it runs on")
    machine.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster to join, or auto (default: RAY_ADDRESS where it is set, else this "
        "machine)",
    )
    machine.add_argument(
        "--device", metavar="NAME", help="auto, cpu or cuda (default: a GPU where there is one)"
    )
    machine.add_argument(
        "--cpus-per-trial",
        type=float,
        metavar="N",
        help=f"cores a trial occupies, and its threads (default: {default.cpus_per_trial:g})",
    )
    machine.add_argument(
        "--gpus-per-trial",
        type=float,
        metavar="N",
        help="GPUs a trial occupies; 0.25 puts four on one card (default: 1 where there is one)",
    )
    machine.add_argument(
        "--max-concurrent",
        type=int,
        metavar="N",
        help="most trials at a time; on a cluster that grows, as many as it may grow to "
        "(default: as many as fit now)",
    )
    machine.add_argument(
        "--checkpoint-seconds",
        type=float,
        metavar="N",
        help="least time between two checkpoints of a trial (default: "
        f"{default.checkpoint_seconds:g})",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run nothing and write nothing: print the settings, the first trials, and an "
        "estimate of time and memory",
    )
    return parser


def configure(arguments: Sequence[str]) -> SweepConfig:
    """Command line -> configuration; raises `UsageError`.

    With --resume the stored configuration is the starting point, and an option that would make
    another sweep of it is refused.
    """
    given: dict[str, Any] = vars(build_parser().parse_args(arguments))
    given.pop("dry_run", None)
    resume = given.pop("resume", None)
    _settle_draws(given)
    base = SweepConfig()
    if resume is not None:
        if given.get("name", resume) != resume:
            raise UsageError(
                [f"--resume continues '{resume}'; --name '{given['name']}' starts another sweep."]
            )
        storage = given.get("storage", base.storage)
        stored = load_record(open_storage(join(storage, resume)))["config"]
        base = SweepConfig.from_dict(dict(stored) | {"name": resume, "storage": storage})
    else:
        with suppress(SpaceError):  # which is told with all other mistakes
            effort = find_space(given.get("space", base.space))
            given = {"trials": effort.trials, "seeds": effort.seeds} | given
    if "init_from" in given:
        start = read_start(given.pop("init_from"), given.get("storage", base.storage))
        base = replace(base, init_from=start)
        if resume is None:
            base = replace(base, task=start.task)
    if "second_objective" in given:
        given.setdefault("pruner", "none")
    given.setdefault("address", os.environ.get("RAY_ADDRESS", base.address))
    given.setdefault("tracking_uri", base.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))
    plain = base.to_dict()
    given.setdefault("data", base.data or os.environ.get("FEWSHOT_DATA", ""))
    if given["data"]:
        given["data"] = str(Path(given["data"]).absolute())
    if "datasets" in given:
        given["datasets"] = [absolute_dataset(name) for name in given["datasets"]]
        _settle_bundle(given)
    if "backbone" in given:
        given["backbone"] = absolute_spec(given["backbone"])
    plain["task"] |= {key: given.pop(key) for key in _TASK if key in given}
    config = SweepConfig.from_dict(plain | given)
    if resume is not None:
        _refuse_changes(stored, config)
    return config


def is_dry_run(arguments: Sequence[str]) -> bool:
    """Whether nothing shall be run; raises `UsageError`."""
    return hasattr(build_parser().parse_args(arguments), "dry_run")


def _refuse_changes(stored: Mapping[str, Any], config: SweepConfig) -> None:
    found = differences(SweepConfig.from_dict(stored).identity(), config.identity())
    if found:
        raise UsageError(
            [
                f"A sweep is resumed with the settings it was started with, and {line}. Leave "
                "that option away, or start another sweep with --name."
                for line in found
            ]
        )


def absolute_dataset(spec: str) -> str:
    """A data set's specification with its path, if it has one, made absolute."""
    for prefix in PREFIXES:
        if spec.startswith(prefix) and spec != prefix:
            return f"{prefix}{Path(spec.removeprefix(prefix)).expanduser().resolve()}"
    return spec


def _settle_draws(given: dict[str, Any]) -> None:
    """A file of draws is a rule of drawing. Raises `UsageError`."""
    pattern = given.pop("shots_file", None)
    if pattern is None:
        return
    if "draws" in given:
        raise UsageError(
            [f"Images are drawn by one rule: --draws {given['draws']} or --shots-file, not both."]
        )
    given["draws"] = absolute_draws(f"file:{pattern}")


def _settle_bundle(given: dict[str, Any]) -> None:
    """A bundle brings its own backbone, and as many shots as it has."""
    spec = given["datasets"][0]
    if len(given["datasets"]) > 1 or not is_bundle(spec):
        return
    given.setdefault("backbone", spec)
    if "shots" not in given:
        try:
            given["shots"] = [open_bundle(Path(spec.partition(":")[2])).shots]
        except DataError as error:
            raise UsageError([str(error)]) from error


def per_task(config: SweepConfig) -> list[SweepConfig]:
    """One sweep, or with `per_task` one for every data set and number of shots."""
    if not config.per_task:
        return [config]
    task, found = config.task, []
    for dataset, short in zip(task.sources, task.names, strict=True):
        is_one_of_many = len(task.sources) > 1
        datasets = (dataset,) if is_one_of_many else task.datasets
        for shots in task.shots:
            cell = replace(task, datasets=datasets, shots=(shots,))
            stem = f"{config.name}-{short if is_one_of_many else cell.short}-{shots}shot"
            name = stem if config.name else ""
            found.append(replace(config, task=cell, name=name, per_task=False))
    return found


def _by_space(value: Callable[[SpaceEntry], str]) -> str:
    """A default that depends on the space, e.g. `1 for rmt, 3 for taskres`."""
    names: dict[str, list[str]] = {}
    for name, entry in SPACES.items():
        names.setdefault(value(entry), []).append(name)
    return "; ".join(f"{value} for {' and '.join(spaces)}" for value, spaces in names.items())


def names(text: str) -> list[str]:
    """Names with commas between them; `all11` stands for eleven. A path that is there may have
    commas of its own."""
    parts, found = [part for part in text.split(",") if part], list[str]()
    while parts:
        longest = range(len(parts), 1, -1)
        taken = next((n for n in longest if _is_path(",".join(parts[:n]))), 1)
        name = ",".join(parts[:taken])
        found += BASE_TASKS if name == "all11" else (name,)
        del parts[:taken]
    return found


def _is_path(spec: str) -> bool:
    """Whether a data set's specification holds the path of something that is there."""
    path = next((spec.removeprefix(p) for p in PREFIXES if spec.startswith(p)), "")
    return bool(path) and os.path.exists(os.path.expanduser(path))


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas between them, e.g. 1,2,3, got '{text}'"
        ) from None


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected e.g. 90, 10m or 1.5h, got '{text}'")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]
