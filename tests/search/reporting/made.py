"""Results and sweeps for the tests of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from optuna.distributions import FloatDistribution, distribution_to_json

from search.core.config import SweepConfig
from search.core.objectives import best_of
from search.core.results import Result, State
from search.core.sweep_folder import SweepRecord
from search.evaluation.record import Evaluation, Label, Score
from search.reporting.source import Source
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage
from trainables.methods.taskres import TaskResConfig
from trainables.trial import TaskSpec, TrialConfig


def trial_config(epochs: int = 8) -> dict[str, Any]:
    optim = OptimConfig(lr=1e-3, epochs=epochs, batch_size=64)
    return TrialConfig("taskres", "search", TaskResConfig(), optim).to_dict()


def result(
    number: int, values: tuple[float, ...], state: State = "COMPLETE", **params: Any
) -> Result:
    """A trial of 8 epochs, or of `epochs`, with a report step per epoch."""
    share = distribution_to_json(FloatDistribution(0.0, 1.0))
    epochs = params.pop("epochs", 8)
    value = values[-1] if values and state != "FAIL" else None
    return Result(
        *(number, state, value, values, {}, params, dict.fromkeys(params, share), {}),
        *(
            trial_config(epochs) | {"preset": "search" if number else "paper"},
            1.0,
            0.0,
            1.0,
            "host",
        ),
    )


def sweep_of(
    name: str,
    *judged: tuple[str, int],
    backbone: str = "tiny",
    draws: str = "seeded",
    trials: tuple[Result, ...] = (),
) -> Source:
    """A sweep that was judged on these data sets, with so many shots each."""
    labels: tuple[Label, ...] = get_args(Label)
    judged = judged or (("a", 1),)
    scores = [Score(x, (0.5, 0.6), d, n, d, "test", 9) for x in labels for d, n in judged]
    datasets, shots = (tuple(dict.fromkeys(column)) for column in zip(*judged, strict=True))
    config = SweepConfig(name=name, task=TaskSpec(datasets, backbone, shots, (1,), draws=draws))
    results = {trial.number: trial for trial in trials or (result(0, (0.5,)),)}
    best = best_of(results.values())
    found = Evaluation(best.number if best else 0, 0.5, (2, 3), "few-shot", tuple(scores))
    record = SweepRecord("id", config, {})
    return Source(LocalStorage(Path(name)), record, config, results, found, (), None)
