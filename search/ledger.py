"""The ledger: which trials exist and how they ended.

The Optuna study in the sweep's folder says what was tried; a trial is finished when its
`result.json` is there, whole, and never before. The commit comes first and the study is told
after it, so a crash between the two is mended on the next start by reading the commit. What was
running when a driver died is issued again under its own number and continues from its checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from search.files import read_json, write_json
from search.problems import UsageError
from search.pruners import PRUNERS
from search.samplers import make_sampler
from spaces.base import Space
from trainables.trial import TrialConfig
from trainables.trial_run import CHECKPOINT

FORMAT = 1
"""Version of `result.json`."""

State = Literal["COMPLETE", "PRUNED", "FAIL"]


@dataclass(frozen=True)
class Result:
    """How a trial ended: the content of its `result.json`."""

    number: int
    """The trial's number, from 0."""
    state: State
    """`COMPLETE`: trained to its end; `PRUNED`: stopped early by the pruner; `FAIL`: see reason."""
    value: float | None
    """Validation accuracy (a fraction): final, or the last before pruning; none for a failure."""
    values: tuple[float, ...]
    """The objective after each part."""
    metrics: dict[str, float]
    """The last row of metrics, and the forecast."""
    parameters: dict[str, Any]
    """The space's parameters, as sampled."""
    config: dict[str, Any]
    """The resolved `TrialConfig`."""
    train_seconds: float
    """Time in training and validation."""
    ended: float
    """Unix time."""
    reason: str = ""
    """Why it failed, else empty."""
    details: str = ""
    """Traceback of a failure, else empty."""
    format: int = FORMAT
    """Version of this record."""


@dataclass
class Live:
    """A trial that has been issued and has not ended."""

    number: int
    """Its number in the study."""
    config: TrialConfig
    """What it trains."""
    trial: Trial
    """Optuna's handle."""
    reported: int = 0
    """Parts whose value the study knows."""
    train_seconds: float = 0.0
    """Training time heard of in this run of the driver."""
    forecast: dict[str, float] = field(default_factory=dict)
    """What the method said before training."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest metrics heard of."""


class Ledger:
    """The study of one sweep. One process at a time (see `lock.py`), one thread."""

    def __init__(self, folder: Path, space: Space, sampler: str, pruner: str, seed: int) -> None:
        """Opens or creates the study, adopts committed results, queues what was interrupted.

        Raises `UsageError` when the folder's files are damaged or of another version.
        """
        self.folder, self.space = folder, space
        self._sampler, self._seed = sampler, seed
        self.live: dict[int, Live] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Without this, a restarted TPE explains itself on the terminal at every question.
        logging.getLogger("optuna").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
            self.study = optuna.create_study(
                storage=storage,
                study_name=folder.name,
                direction="maximize",
                load_if_exists=True,
                sampler=RandomSampler(),  # nothing is asked before `ask` sets the real one
                pruner=PRUNERS[pruner](),
            )
        self.results = {result.number: result for result in self._committed()}
        if not self.frozen():
            self.study.enqueue_trial(dict(space.paper_parameters))
        self._interrupted = self._recover()

    def trial_folder(self, number: int) -> Path:
        """Where a trial's checkpoint, artifact and result lie."""
        return self.folder / "trials" / f"{number:06d}"

    @property
    def issued(self) -> int:
        """Trials that have ended, run, or wait to be issued again."""
        return len(self.results) + len(self.live) + len(self._interrupted)

    @property
    def waiting(self) -> int:
        """Interrupted trials that wait to be issued again."""
        return len(self._interrupted)

    def ask(self) -> Live:
        """The next trial: an interrupted one if there is any, else a new one."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            self.study.sampler = make_sampler(self._sampler, self._seed, frozen.number)
            trial = Trial(self.study, frozen._trial_id)
        else:
            number = len(self.frozen())
            self.study.sampler = make_sampler(self._sampler, self._seed, number)
            trial = self.study.ask()
        # Parameters that are stored already come back as they are; missing ones are sampled.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            config = replace(self.space.suggest(trial), seed=self._seed)
        known = self.frozen()[trial.number].intermediate_values
        live = Live(trial.number, config, trial, reported=len(known))
        self.live[trial.number] = live
        return live

    def report(self, number: int, values: Sequence[float], metrics: dict[str, float]) -> None:
        """Tell the study every value it does not know yet; a step is a part, from 1."""
        live = self.live[number]
        live.metrics = metrics
        for step in range(live.reported + 1, len(values) + 1):
            live.trial.report(values[step - 1], step)
        live.reported = max(live.reported, len(values))

    def should_prune(self, number: int) -> bool:
        """What the pruner says of a running trial. The paper's setting, trial 0, is the yardstick
        of its sweep and is always trained to its end."""
        if number == 0:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return self.live[number].trial.should_prune()

    def finish(
        self,
        number: int,
        state: State,
        values: Sequence[float] = (),
        reason: str = "",
        details: str = "",
    ) -> Result:
        """Commit the end of a trial, then tell the study. After it returns, nothing loses it."""
        live = self.live[number]
        value = None
        if state == "PRUNED":
            value = values[-1]
        elif state == "COMPLETE":
            # Side by side this is the last report; in sequence it is the mean over the seeds.
            value = live.metrics["val/accuracy"]
        if value is not None and not math.isfinite(value):
            raise ValueError(f"trial {number} ended with the value {value}")
        result = Result(
            number,
            state,
            value,
            tuple(values),
            live.forecast | live.metrics,
            dict(live.trial.params),
            live.config.to_dict(),
            live.train_seconds,
            time.time(),
            reason,
            details,
        )
        folder = self.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", asdict(result))
        self._tell(live.trial, result)
        self.results[number] = result
        del self.live[number]
        (folder / CHECKPOINT).unlink(missing_ok=True)  # scores and moments are large
        return result

    def best(self) -> Result | None:
        """The complete trial with the highest value; of equals, the one with the lower
        validation loss, then the earlier."""
        complete = [r for r in self.results.values() if r.state == "COMPLETE"]
        return min(complete, key=_rank, default=None)

    def config_of(self, result: Result) -> TrialConfig:
        """The configuration that a result was obtained with."""
        return TrialConfig.from_dict(result.config)

    def _tell(self, trial: Trial, result: Result) -> None:
        state = TrialState[result.state]
        # Optuna takes the last reported value of a pruned trial, and none of a failed one.
        value = result.value if state == TrialState.COMPLETE else None
        self.study.tell(trial, value, state)

    def _recover(self) -> list[FrozenTrial]:
        """Tell the study what was committed behind its back; collect what was interrupted."""
        interrupted = []
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            committed = self.results.get(frozen.number)
            if committed is None:
                interrupted.append(frozen)
                continue
            trial = Trial(self.study, frozen._trial_id)
            for step, value in enumerate(committed.values, start=1):
                if step not in frozen.intermediate_values:
                    trial.report(value, step)
            self._tell(trial, committed)
        return interrupted

    def _committed(self) -> Iterator[Result]:
        for path in sorted((self.folder / "trials").glob("*/result.json")):
            try:
                plain = read_json(path)
                if plain.get("format") != FORMAT:
                    raise ValueError(
                        f"'{path}' has format {plain.get('format')}, this version reads {FORMAT}"
                    )
                yield Result(**(plain | {"values": tuple(plain["values"])}))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UsageError(
                    [
                        f"A committed result must be readable: {error}. Restore the file from a "
                        "copy, or start another sweep with --name."
                    ]
                ) from error

    def frozen(self) -> list[FrozenTrial]:
        """The study's trials, as Optuna sees them."""
        return self.study.get_trials(deepcopy=False)


def _rank(result: Result) -> tuple[float, float, int]:
    assert result.value is not None
    return (-result.value, result.metrics.get("val/loss", math.inf), result.number)
