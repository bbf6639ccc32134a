"""Proposals of TPE that sees a part of a long sweep, compared with TPE that sees all of it.

    python -m benchmarks.seen_trials                          1,000 trials, three seeds
    python -m benchmarks.seen_trials --trials 610 --seeds 1   fewer

The sampler is the product's, with a new one for each trial; two studies with the same seeds differ
only in what it sees (`search/ledger/seen_trials.py`). Functions of known maximum 0 take the place
of training. For each function, the table shows the best value and the mean value of the last 500
proposals (medians over seeds), and the processor time per proposal in them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import optuna

from search.core.samplers import make_sampler
from search.ledger.seen_trials import LATEST, SweepTrials

Function = Callable[[optuna.Trial], float]


def _numbers(trial: optuna.Trial, count: int) -> list[float]:
    return [trial.suggest_float(f"x{place}", -1, 1) for place in range(count)]


def _bowl(trial: optuna.Trial) -> float:
    """A quadratic whose curvatures differ by a factor of 100."""
    return -sum(10 ** (place / 3) * (x - 0.3) ** 2 for place, x in enumerate(_numbers(trial, 7)))


def _hills(trial: optuna.Trial) -> float:
    """Rastrigin's function: many local maxima."""
    return -sum(x * x + 0.2 * (1 - math.cos(9 * math.pi * x)) for x in _numbers(trial, 5))


def _valley(trial: optuna.Trial) -> float:
    """Rosenbrock's function: a curved ridge."""
    values = [2 * x for x in _numbers(trial, 4)]
    pairs = pairwise(values)
    return -sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in pairs) / 100


def _choices(trial: optuna.Trial) -> float:
    """Like a space of this project: choices, and numbers that depend on one of them."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    size = trial.suggest_categorical("size", [8, 16, 32])
    lr = trial.suggest_float("lr", 1e-6, 1e-1, log=True)
    found = -((math.log10(lr) + 3) ** 2) - 0.3 * (size != 16)
    if kind == "a":
        return found - (trial.suggest_float("leak", 0, 1) - 0.7) ** 2
    return found - (0.2 if kind == "b" else 0.5)


FUNCTIONS: Mapping[str, Function] = {
    "bowl, 7 numbers": _bowl,
    "many hills, 5 numbers": _hills,
    "curved ridge, 4 numbers": _valley,
    "choices and conditions": _choices,
}


@dataclass(frozen=True)
class Outcome:
    """One study."""

    best: float
    """Its best value."""
    last: float
    """Mean value of its last proposals."""
    milliseconds: float
    """Processor time for each of them."""


def run(function: Function, trials: int, seed: int, is_limited: bool) -> Outcome:
    """Run a study; the last third of its trials, and at most 500, are the last proposals."""
    storage, last = SweepTrials(), min(500, trials // 3)
    study = optuna.create_study(storage=storage, direction="maximize")
    values, spent = [], 0.0
    for number in range(trials):
        study.sampler = make_sampler("tpe", seed, number)
        start = time.process_time()
        with storage.limited() if is_limited else nullcontext():
            trial = study.ask()
            value = function(trial)
        spent += (time.process_time() - start) * (number >= trials - last)
        study.tell(trial, value)
        values.append(value)
    return Outcome(max(values), statistics.fmean(values[-last:]), 1e3 * spent / last)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seen_trials")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.trials <= LATEST + 100:
        raise SystemExit(f"--trials must be above {LATEST + 100}: a shorter sweep is seen whole")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    print(f"{'':26}{'best':^22}{'last proposals':^22}{'ms per proposal':^18}")
    print(f"{'':26}" + 2 * f"{'all seen':>11}{'part':>11}" + f"{'all seen':>9}{'part':>9}")
    for name, function in FUNCTIONS.items():
        pairs = [
            [run(function, options.trials, seed, is_limited) for is_limited in (False, True)]
            for seed in range(options.seeds)
        ]
        whole, part = zip(*pairs, strict=True)
        row = f"{name:26}"
        for figure, width in (("best", 11), ("last", 11), ("milliseconds", 9)):
            for side in (whole, part):
                median = statistics.median(getattr(one, figure) for one in side)
                row += f"{median:{width}.4f}" if width > 9 else f"{median:{width}.0f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
