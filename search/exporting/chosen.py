"""Which artifact of a sweep is exported: the winner's as it was judged, or one trial's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from search.core.config import SweepConfig
from search.core.objectives import best_of
from search.core.problems import UsageError
from search.core.results import Result, read_results, trial_folder
from search.core.sweep_folder import SweepRecord
from search.evaluation.record import Evaluation, read_evaluation
from trainables.core.storage import Storage
from trainables.core.text import did_you_mean
from trainables.trial import Episode, TaskSpec, TrialConfig

BEST = "best"


@dataclass(frozen=True)
class Chosen:
    """One artifact of a sweep, and where it comes from."""

    sweep: Storage
    """The sweep's folder."""
    record: SweepRecord
    """Its `sweep.json`."""
    config: SweepConfig
    """What the sweep is."""
    result: Result
    """The trial's."""
    task: TaskSpec
    """The sweep's, with the seeds of the draws that this artifact is one of."""
    episode: Episode
    """What it was trained on."""
    file: str
    """Its name in the sweep's folder."""
    evaluation: Evaluation | None
    """That in which this artifact was judged; none for a trial's own, which never is."""

    @property
    def trial(self) -> TrialConfig:
        """The configuration that it was trained with."""
        return TrialConfig.from_dict(self.result.config)

    @property
    def recorded(self) -> float | None:
        """Validation accuracy that was written down for this one training, if it was."""
        return None if self.evaluation or len(self.task.episodes) > 1 else self.result.value


def choose(
    sweep: Storage, record: SweepRecord, config: SweepConfig, trial: str, episode: str
) -> Chosen:
    """The artifact that `--trial` and `--episode` mean; raises `UsageError`."""
    results = read_results(sweep)
    best = best_of(results.values())
    if best is None:
        raise UsageError(
            [
                f"Only a finished trial can be exported, and '{config.name}' has none yet: go on "
                f"with python -m search.run --resume {config.name}."
            ]
        )
    if trial == BEST:
        return _winner(sweep, record, config, results, episode, best.number)
    result = _finished(results, trial, config.name)
    task = config.task
    chosen = _episode(task, episode)
    suffix = f"-{task.label(chosen)}" if len(task.episodes) > 1 else ""
    file = f"{trial_folder(result.number)}/artifact{suffix}.safetensors"
    return Chosen(sweep, record, config, result, task, chosen, file, None)


def _winner(
    sweep: Storage,
    record: SweepRecord,
    config: SweepConfig,
    results: Mapping[int, Result],
    episode: str,
    best: int,
) -> Chosen:
    evaluation = read_evaluation(sweep)
    if evaluation is None:
        raise UsageError(
            [
                f"--trial {BEST} is the winner as it was judged, and '{config.name}' has not been "
                f"evaluated: go on with python -m search.run --resume {config.name}, or export the "
                f"best trial so far, --trial {best}."
            ]
        )
    result = results.get(evaluation.winner)
    try:
        written = json.loads(sweep.read("winner/config.json"))
    except (FileNotFoundError, ValueError):
        written = None
    if result is None or written != result.config:
        raise UsageError(
            [
                f"The folder 'winner' must hold the judged trial {evaluation.winner}, and it does "
                f"not: repeat the evaluation with python -m search.run --resume {config.name} "
                "after removing evaluation.json."
            ]
        )
    task = replace(config.task, seeds=evaluation.seeds)
    chosen = _episode(task, episode)
    file = f"winner/artifact-{task.label(chosen)}.safetensors"
    return Chosen(sweep, record, config, result, task, chosen, file, evaluation)


def _finished(results: Mapping[int, Result], trial: str, name: str) -> Result:
    complete = [number for number, r in sorted(results.items()) if r.state == "COMPLETE"]
    known = f"Complete are: {', '.join(map(str, complete))}."
    if not trial.isdecimal():
        raise UsageError([f"--trial must be {BEST} or a trial's number, got '{trial}'. {known}"])
    result = results.get(int(trial))
    if result is None:
        raise UsageError([f"There is no finished trial {trial} in '{name}'. {known}"])
    if result.state != "COMPLETE":
        raise UsageError(
            [f"A trial must be complete to be exported, and {trial} is {result.state}. {known}"]
        )
    return result


def _episode(task: TaskSpec, label: str) -> Episode:
    """The one of that label; the first where none is given."""
    episodes = {task.label(episode): episode for episode in task.episodes}
    if label and label not in episodes:
        raise UsageError([did_you_mean("episode", label, episodes)])
    return episodes[label] if label else task.episodes[0]
