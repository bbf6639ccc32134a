"""Which trial, or which ensemble of trials, should be the result of a sweep?

    python -m benchmarks.selection            train what is missing, then compare (an hour or more)
    python -m benchmarks.selection --compare  compare with what is there (minutes)
    python -m benchmarks.selection --quick    three tasks, two methods, a few configurations

Needs `SHARED_DATA`, a folder with feature bundles. Every configuration is trained once on every
draw of a task, with the product's trainer, and the log-probabilities of all images are kept in
`--cache`. A sweep of 20 trials is the paper's setting and 19 of the other configurations, so search
seeds, validation and rules cost seconds. Results are judged on test images, for models of draws
that the sweep has not used, unless the shots are the whole pool.

Constants are chosen on the other data sets. The test accuracy here decides nothing in the product.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import optuna
import torch

from benchmarks.selection.auto import auto_outcomes
from benchmarks.selection.bank import CONFIGS, FOLDED, complete, make, make_folds
from benchmarks.selection.candidates import CANDIDATES, GRID, all_rules, single_rules
from benchmarks.selection.portfolio import portfolio_outcomes
from benchmarks.selection.report import Outcome, left_out, rank_correlations, table
from benchmarks.selection.simulate import Bench, Validation, outcomes_of
from benchmarks.selection.tasks import BenchTask, find_tasks

TRIALS = 20
DEFAULT = "ensemble (default)"
WITHOUT_TEXT = "linear-probe"
"""A method whose gain comes from the zero-shot model in the ensemble: it is shown apart."""


def train(cache: Path, tasks: Sequence[BenchTask], methods: Sequence[str], count: int) -> None:
    """Fill the bank; files that are there are kept."""
    for task in tasks:
        for method in methods:
            print(f"{task.name} {method} {make(cache, task, method, count):.0f} s", flush=True)
    for task in tasks:
        for method in set(methods) & set(FOLDED):
            if task.shots >= 4:
                seconds = make_folds(cache, task, method, count)
                print(f"{task.name} {method}, folds {seconds:.0f} s", flush=True)


def compare(
    cache: Path, tasks: Sequence[BenchTask], methods: Sequence[str], seeds: int
) -> list[Outcome]:
    """Outcomes of all rules for the sweeps of every task and method that the bank has."""
    found = []
    for task in tasks:
        for method in methods:
            if not complete(cache, task, method):
                continue
            for folds in (False, True)[: 1 + complete(cache, task, method, folds=True)]:
                bench = Bench.open(cache, task, (method,), folds)
                kinds: list[Validation] = ["held-out", "pooled", *(["folds"] if folds else [])]
                for kind in kinds:
                    sweeps = bench.sweeps(TRIALS, seeds)
                    rules = single_rules if folds or kind != "pooled" else all_rules
                    found += outcomes_of(bench, kind, sweeps, rules, method)
            print(".", end="", flush=True)
        have = [m for m in methods if complete(cache, task, m)]
        if len(have) > 1:
            found += auto_outcomes(cache, task, have, TRIALS, seeds)
    print()
    return found + portfolio_outcomes(cache, tasks, methods, seeds)


def show(found: Sequence[Outcome]) -> str:
    """All tables."""
    names = {*CANDIDATES, *map(str, GRID)}
    every = [o for o in found if o.rule in names]
    single = [o for o in every if o.method != WITHOUT_TEXT]
    pooled = [o for o in single if o.validation == "pooled"]
    parts = ["### Rules\n"]
    for kind in ("held-out", "pooled"):
        here = [o for o in single if o.validation == kind and o.rule in CANDIDATES]
        parts.append(table(f"rule, {kind} validation", here, lambda o: o.rule, [*CANDIDATES]))
    few = [o for o in single if o.validation.endswith("fewer trials")]
    few = [o for o in few if o.rule in ("most accurate", "most likely", DEFAULT)]
    parts.append(table("folds", few, lambda o: f"{o.validation}: {o.rule}"))
    judged, chosen = left_out(pooled)
    parts.append(table("constants chosen on the other data sets", judged, lambda o: "all"))
    parts += [f"* {judge}: {constants}" for judge, constants in chosen.items()]
    default = [o for o in pooled if o.rule == DEFAULT]
    for title, key in (
        ("data set", lambda o: o.data_set),
        ("shots", lambda o: f"{o.shots:2d}"),
        ("method", lambda o: o.method),
    ):
        here = default
        if title == "method":
            here = [o for o in every if o.validation == "pooled" and o.rule == DEFAULT]
        order = sorted({key(o) for o in here})
        parts.append(table(f"default, per {title}", here, key, order))
    parts.append(rank_correlations([o for o in single if o.rule == DEFAULT]))
    short = [o for o in found if "trials" in o.rule]
    parts.append(table("first trials", short, lambda o: o.rule))
    across = [o for o in found if "auto" in o.method]
    parts.append(table("auto", across, lambda o: f"{o.method}, {o.rule}"))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--compare", action="store_true", help="train nothing")
    parser.add_argument("--quick", action="store_true", help="a small part, for a test")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/few-shot-selection"))
    parser.add_argument("--data", type=Path, default=os.environ.get("SHARED_DATA"))
    parser.add_argument("--seeds", type=int, default=5, help="sweeps per task and method")
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("SHARED_DATA must name the folder of the bundles, and is not set. Set it.")
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cache, tasks, methods = given.cache.expanduser(), find_tasks(given.data), list(CONFIGS)
    if given.quick:
        tasks, methods = tasks[:3], ["taskres", "gda"]
    if not given.compare:
        train(cache, tasks, methods, 6 if given.quick else max(CONFIGS.values()))
    found = compare(cache, tasks, methods, given.seeds)
    (cache / "outcomes.jsonl").write_text("".join(json.dumps(asdict(o)) + "\n" for o in found))
    print(show(found))


if __name__ == "__main__":
    main()
