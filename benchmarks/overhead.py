"""Measures the time per trial outside training, and trials per minute.

    python -m benchmarks.overhead                    40 trials of `taskres`, one at a time
    python -m benchmarks.overhead --slots 2          two at a time
    python -m benchmarks.overhead --no-tracking      the same without MLflow

Runs a real sweep (Ray, ledger, checkpoints, MLflow in a sqlite file) in a temporary folder, then
the baseline in this process: plain Optuna on a journal and the same Trainer, without checkpoints,
commits and tracking. With one slot both must find the same value in every trial. Trials per minute
are counted from the end of the first trial to the end of the last, without start-up; the overhead
is the median that the sweep itself measures.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from search.core.environment import quiet_environment

quiet_environment()  # Ray reads its settings when it is imported

import optuna  # noqa: E402
import torch  # noqa: E402
from optuna.storages import JournalStorage  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402
from rich.console import Console  # noqa: E402

from search.core.config import SweepConfig  # noqa: E402
from search.core.pruners import PRUNERS  # noqa: E402
from search.core.results import read_results  # noqa: E402
from search.core.samplers import make_sampler  # noqa: E402
from search.driver.preflight import preflight  # noqa: E402
from search.driver.sweep import Outcome, run_sweep  # noqa: E402
from spaces.registry import SPACES  # noqa: E402
from trainables.encoded_task import EncodedTask  # noqa: E402
from trainables.presets import task_facts  # noqa: E402
from trainables.trial import TaskSpec  # noqa: E402
from trainables.trial_run import TrialRun  # noqa: E402


@dataclass(frozen=True)
class Side:
    """Result of one of the two ways to run the trials."""

    values: list[float]
    """Objective by trial number."""
    per_minute: float
    """Trials per minute, from the end of the first to the end of the last."""
    train_seconds: float
    """Median time per trial in training and validation, in seconds."""
    overhead: float
    """Median time per trial outside training, in seconds."""


def run_ours(config: SweepConfig) -> Side:
    """Run the sweep as a user does."""
    outcome: Outcome = run_sweep(preflight(config), Console(file=io.StringIO()))
    results = read_results(outcome.sweep).values()
    if outcome.overhead is None or outcome.undelivered or len(results) < config.trials:
        raise SystemExit(f"the sweep is incomplete: {outcome.states}")
    return Side(
        [result.value for result in results if result.value is not None],
        _per_minute(sorted(result.ended for result in results)),
        statistics.median(result.train_seconds for result in results),
        outcome.overhead,
    )


def run_peer(config: SweepConfig, folder: Path) -> Side:
    """Run the trials with plain Optuna in this process."""
    task = config.task
    source = task.source("")
    bench = EncodedTask(task.backbone, "cpu", source)
    space = SPACES[config.space].build(task_facts(task, source, bench.backbone.tower))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / "peer.journal"))),
            direction="maximize",
            pruner=PRUNERS[config.pruner](),
        )
        study.enqueue_trial(dict(space.first_parameters))
        values, ends, trained, outside = [], [], [], []
        for number in range(config.trials):
            begin, training = time.monotonic(), 0.0
            study.sampler = make_sampler(config.sampler, config.seed, number)
            trial = study.ask()
            run = TrialRun(space.suggest(trial).seeded(config.seed), task, bench)
            value, state = 0.0, optuna.trial.TrialState.COMPLETE
            while not run.finished:
                start = time.monotonic()
                report = run.advance()
                training += time.monotonic() - start
                value = report.values[-1]
                trial.report(value, report.step)
                if number and not run.finished and trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
            complete = state == optuna.trial.TrialState.COMPLETE
            study.tell(trial, value if complete else None, state)
            values.append(value)
            ends.append(time.time())
            trained.append(training)
            outside.append(time.monotonic() - begin - training)
    return Side(
        values, _per_minute(ends), statistics.median(trained), statistics.median(outside[1:])
    )


def _per_minute(ends: list[float]) -> float:
    return 60 * (len(ends) - 1) / (max(ends) - min(ends))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--space", choices=list(SPACES), default="taskres")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--slots", type=int, default=1, help="trials at a time in the sweep")
    parser.add_argument("--no-tracking", action="store_true", help="the sweep without MLflow")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = SPACES[options.space].seeds
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        config = SweepConfig(
            space=options.space,
            task=TaskSpec(("digits",), "tiny", (16,), seeds),
            trials=options.trials,
            storage=name,
            device="cpu",
            max_concurrent=options.slots,
            eval_seeds=1,
            tracking_uri="none" if options.no_tracking else "",
        )
        before = os.getloadavg()[0]
        ours = run_ours(config)
        between = os.getloadavg()[0]
        peer = run_peer(config, Path(name))
        after = os.getloadavg()[0]
    print(
        f"{options.space}, {options.trials} trials, load average {before:.1f} before, "
        f"{between:.1f} between, {after:.1f} after"
    )
    print(f"{'':34}{'trials/min':>11}{'training/s':>12}{'overhead/ms':>13}")
    for title, side in (
        (f"sweep, {options.slots} at a time{', untracked' * options.no_tracking}", ours),
        ("plain Optuna and Trainer", peer),
    ):
        print(
            f"{title:34}{side.per_minute:11.0f}{side.train_seconds:12.3f}"
            f"{side.overhead * 1e3:13.0f}"
        )
    print(f"trials per minute: {ours.per_minute / peer.per_minute:.2f} of the peer's")
    if options.slots == 1:
        pairs = list(zip(ours.values, peer.values, strict=True))
        if ours.values != peer.values:
            first = next(n for n, pair in enumerate(pairs) if pair[0] != pair[1])
            raise SystemExit(
                f"the comparison is void: from trial {first} on the values differ, "
                f"{ours.values[first]} in the sweep, {peer.values[first]} in the peer"
            )
        print("both sides found the same value in every trial")


if __name__ == "__main__":
    main()
