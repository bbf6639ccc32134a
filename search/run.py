"""`python -m search.run`: a hyper-parameter search from the command line."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import ModuleType
from typing import Any, NoReturn

from rich.console import Console

from search.environment import quiet_environment

quiet_environment()  # Ray reads its settings when it is imported

from search.config import SweepConfig, differences  # noqa: E402
from search.preflight import load_record, preflight  # noqa: E402
from search.problems import EvaluationError, StoppedError, UsageError  # noqa: E402
from search.pruners import PRUNERS  # noqa: E402
from search.samplers import SAMPLERS  # noqa: E402
from spaces.registry import SPACES, Entry  # noqa: E402
from trainables.backbones.registry import absolute_spec  # noqa: E402
from trainables.data.registry import DATASETS  # noqa: E402
from trainables.storage import StorageError, join, open_storage  # noqa: E402

_TASK = ("dataset", "backbone", "shots", "seeds")
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
  python -m search.run --resume NAME                    go on with an interrupted sweep
  python -m search.run --resume NAME --trials 100       add trials to a finished one"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError([f"{message[0].upper()}{message[1:]}. See --help."])


def build_parser() -> argparse.ArgumentParser:
    """All options. None has a default here: an option that is absent was not given."""
    default = SweepConfig()
    parser = _Parser(
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
        help=f"what may vary: {', '.join(SPACES)} (default: {default.space})",
    )
    what.add_argument(
        "--dataset",
        metavar="NAME",
        help=f"{', '.join(DATASETS)} (default: {default.task.dataset})",
    )
    what.add_argument(
        "--backbone",
        metavar="SPEC",
        help="tiny; an open_clip architecture with its tag or a local file (ViT-B-16, "
        "ViT-B-32:laion2b_s34b_b79k, RN50:weights.pt); openai:FILE for a state dict in OpenAI's "
        f"layout (default: {default.task.backbone})",
    )
    what.add_argument(
        "--shots",
        type=int,
        metavar="N",
        help="training images a class; min(N, 4) more a class are for validation "
        f"(default: {default.task.shots})",
    )
    what.add_argument(
        "--seeds",
        type=_integers,
        metavar="N,N,...",
        help="few-shot draws that a trial is averaged over (default: "
        f"{_by_space(lambda entry: ','.join(map(str, entry.seeds)))})",
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
        "--version", action="version", version=f"%(prog)s {version('fewshot-clip-search')}"
    )
    return parser


def configure(arguments: Sequence[str]) -> SweepConfig:
    """Command line -> configuration; raises `UsageError`.

    With --resume the stored configuration is the starting point, and an option that would make
    another sweep of it is refused.
    """
    given: dict[str, Any] = vars(build_parser().parse_args(arguments))
    resume = given.pop("resume", None)
    base = SweepConfig()
    if resume is not None:
        if given.get("name", resume) != resume:
            raise UsageError(
                [f"--resume continues '{resume}'; --name '{given['name']}' starts another sweep."]
            )
        storage = given.get("storage", base.storage)
        stored = load_record(open_storage(join(storage, resume)))["config"]
        base = SweepConfig.from_dict(dict(stored) | {"name": resume, "storage": storage})
    elif given.get("space", base.space) in SPACES:
        effort = SPACES[given.get("space", base.space)]
        given = {"trials": effort.trials, "seeds": effort.seeds} | given
    given.setdefault("address", os.environ.get("RAY_ADDRESS", base.address))
    given.setdefault("tracking_uri", base.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))
    plain = base.to_dict()
    if "backbone" in given:
        given["backbone"] = absolute_spec(given["backbone"])
    plain["task"] |= {key: given.pop(key) for key in _TASK if key in given}
    config = SweepConfig.from_dict(plain | given)
    if resume is not None:
        _refuse_changes(base, config)
    return config


def _refuse_changes(base: SweepConfig, config: SweepConfig) -> None:
    found = differences(base.identity(), config.identity())
    if found:
        raise UsageError(
            [
                f"A sweep is resumed with the settings it was started with, and {line}. Leave "
                "that option away, or start another sweep with --name."
                for line in found
            ]
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the sweep is complete, 2 for a mistake in what was asked for, 1 when no trial
    succeeded, 130 when it was interrupted."""
    console = Console(soft_wrap=True)
    try:
        config = configure(sys.argv[1:] if arguments is None else arguments)
        plan = preflight(config, meanwhile=_load_the_rest)
        outcome = _load_the_rest().run_sweep(plan, console)
    except UsageError as error:
        complain = Console(stderr=True)
        for problem in error.problems:
            complain.print(f"error: {problem}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except (StoppedError, StorageError) as error:
        Console(stderr=True, soft_wrap=True).print(
            f"error: The sweep stopped: {error}. Finished trials are safe: when that is mended, "
            "run the same command again.",
            markup=False,
            highlight=False,
        )
        return 1
    except EvaluationError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"error: The evaluation failed, the trials are safe: {error}. Run the same command "
            "again to repeat it.",
            markup=False,
            highlight=False,
        )
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Finished trials are kept; run the same command again.")
        return 130
    from search.summary import print_summary

    print_summary(outcome, console)
    if outcome.interrupted:
        return 130
    return 0 if outcome.states["COMPLETE"] else 1


def _load_the_rest() -> ModuleType:
    """Ray and all that uses it: seconds, in which the backbone is looked at."""
    return importlib.import_module("search.sweep")


def _by_space(value: Callable[[Entry], str]) -> str:
    """A default that depends on the space, e.g. `1 for rmt, 3 for taskres`."""
    names: dict[str, list[str]] = {}
    for name, entry in SPACES.items():
        names.setdefault(value(entry), []).append(name)
    return "; ".join(f"{value} for {' and '.join(spaces)}" for value, spaces in names.items())


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


if __name__ == "__main__":
    sys.exit(main())
