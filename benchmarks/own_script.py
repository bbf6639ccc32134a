"""The trainable in a user's Ray Tune script, compared with the executor of sweeps.

    python -m benchmarks.own_script               20 trials of TaskRes, three turns
    python -m benchmarks.own_script --trials 6    fewer

Both sides run the same trials without tracking in the same Ray, two at a time on warm workers, in
turns. The script uses Tune's defaults: its loggers and its snapshots of the experiment. A side's
duration is that of its `Tuner.fit`, including the start of the workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from search.core.environment import quiet_environment

_TUNE = ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_GLOBAL_CHECKPOINT_S")
quiet_environment()  # Ray reads its settings when it is imported

from ray import tune  # noqa: E402
from ray.tune.search.basic_variant import BasicVariantGenerator  # noqa: E402
from rich.console import Console  # noqa: E402

from search.core.config import SweepConfig  # noqa: E402
from search.driver.preflight import Plan, preflight  # noqa: E402
from search.driver.sweep import assign_by  # noqa: E402
from search.execution.listeners import SweepListeners  # noqa: E402
from search.execution.ray_session import ray_session  # noqa: E402
from search.execution.tune_run import StopSwitch, run_trials  # noqa: E402
from search.ledger.ledger import Ledger  # noqa: E402
from trainables.core.storage import open_storage  # noqa: E402
from trainables.trainable import FewShotTrainable  # noqa: E402
from trainables.trial import TaskSpec, TrialConfig  # noqa: E402

SLOTS = 2


def by_sweep(plan: Plan, folder: Path) -> tuple[float, dict[str, TrialConfig], list[float]]:
    """Run the trials with the sweep's executor: seconds, configurations and values by number."""
    config = plan.config
    sweep = open_storage(config.location)
    ledger = Ledger(sweep, plan.space, config.sampler, config.pruner, config.seed)
    placement = plan.placement
    assert placement is not None
    assign = assign_by(plan, placement, sweep)
    listener, stop = SweepListeners([]), StopSwitch(None)
    start = time.perf_counter()
    run_trials(ledger, assign, config.trials, placement, listener, stop, folder, print)
    seconds = time.perf_counter() - start
    results = [ledger.results[number] for number in sorted(ledger.results)]
    configs = {str(r.number): TrialConfig.from_dict(r.config) for r in results}
    return seconds, configs, [r.metrics["val/accuracy"] for r in results]


def by_script(
    config: SweepConfig, trials: dict[str, TrialConfig], folder: Path
) -> tuple[float, list[float]]:
    """Run the same trials as a user's script: seconds, and values by number."""
    quiet = {name: os.environ.pop(name) for name in _TUNE if name in os.environ}
    task = config.task
    plain: dict[str, Any] = {
        name: getattr(task, name) for name in ("protocol", "draws", "validation", "objective")
    }
    plain |= {"dataset": task.datasets[0], "shots": list(task.shots), "seeds": list(task.seeds)}
    points = [_flat(trial) for trial in trials.values()]
    values = {name: list({point[name]: None for point in points}) for name in points[0]}
    space = plain | {name: tune.choice(own) for name, own in values.items()}
    tuner = tune.Tuner(
        tune.with_resources(FewShotTrainable, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=BasicVariantGenerator(points_to_evaluate=points, max_concurrent=SLOTS),
            num_samples=len(points),
            max_concurrent_trials=SLOTS,
            metric="val/accuracy",
            mode="max",
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    start = time.perf_counter()
    grid = tuner.fit()
    seconds = time.perf_counter() - start
    os.environ.update(quiet)
    if grid.errors:
        raise RuntimeError(str(grid.errors[0]))
    return seconds, [result.metrics["val/accuracy"] for result in grid]


def _flat(trial: TrialConfig) -> dict[str, Any]:
    own = vars(trial.method_config) | vars(trial.optim)
    return own | {"method": trial.method, "crop_scale": trial.crop_scale, "seed": trial.seed}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_script")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    console = Console(quiet=True)
    with tempfile.TemporaryDirectory() as place, ray_session("", console) as folder:
        for turn in range(options.turns):
            config = SweepConfig(
                space="taskres",
                task=TaskSpec(("digits",), "tiny", (options.shots,), (1,)),
                trials=options.trials,
                sampler="random",
                pruner="none",
                name=f"turn{turn}",
                storage=place,
                tracking_uri="none",
                device="cpu",
                max_concurrent=SLOTS,
            )
            plan = preflight(config)
            ours, trials, values = by_sweep(plan, folder)
            theirs, same = by_script(config, trials, Path(place) / f"script{turn}")
            if sorted(values) != sorted(same):
                raise AssertionError("the two sides trained different models")
            ratios.append(theirs / ours)
            print(f"{options.trials} trials: sweep {ours:.1f} s, script {theirs:.1f} s")
    print(
        f"the script takes {statistics.median(ratios):.3f} of the executor's time "
        f"({min(ratios):.3f} to {max(ratios):.3f}); both trained the same models"
    )


if __name__ == "__main__":
    main()
