"""A sweep from Python, with the options of `search.run` as keyword arguments.

    from search import Sweep

    sweep = Sweep(space="taskres", dataset="digits", shots=4, trials=20)
    sweep.run()
    sweep.trials().sort_values("value")
    labels, probabilities = sweep.load().predict(["photo.jpg"])

Errors are exceptions with the texts of the commands: `UsageError`, which has every problem in
`problems`, before any work starts; `StoppedError`, `EvaluationError` and `StorageError` for a sweep
that cannot continue; `TrackingError` if MLflow does not answer. Everything is stored in the sweep's
folder; an object holds only its location.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

from search.annotate import annotate, send_annotations
from search.archive import archive
from search.core.annotations import Annotations, read_annotations
from search.core.config import SweepConfig
from search.core.objectives import best_of, parse_objective
from search.core.problems import UsageError
from search.core.results import Result, read_rows
from search.core.sweep_folder import SweepFolder, find_sweep
from search.delete import delete
from search.evaluation.record import Evaluation, read_evaluation
from search.ledger.study import finished_study
from search.options import build_parser, read_request
from search.rename import rename
from search.run import check_request, run_plans
from search.terminal.console import open_console
from search.terminal.parser import DEFAULT_STORAGE

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from search.driver.sweep import Outcome
    from search.exporting.classifier import Classifier


class Sweep:
    """A hyper-parameter search over one few-shot task: one that can start, or one on disk."""

    def __init__(self, file: str | Path = "", /, **options: Any) -> None:
        """Check the options of `search.run`, with underscores for hyphens; those in `file`, if
        there is one, are replaced by the others.

        A list is a value with commas, `True` an option without a value, and a dict gives the option
        once per item: `set={"leak": 0.3}`, `range={"lr": (1e-4, 1e-2, "log")}`. Nothing is written
        or started. Raises `UsageError` with every problem that shows without data and model; `run`
        reports the others.
        """
        self._arguments = [*filter(None, [str(file)]), *command_line(options)]
        request = read_request(self._arguments)
        problems = [*request.problems, *request.config.problems()]
        for name, part in (("per_task", "task"), ("test_folds", "fold")):
            if getattr(request.config, name):
                problems.append(
                    f"{name} makes several sweeps. Use python -m search.run, and open the Sweep of "
                    f"each {part}."
                )
        if problems:
            raise UsageError(list(dict.fromkeys(problems)))
        self.name = request.config.sweep_name
        """Name of the sweep."""
        self.storage = request.config.storage
        """Where sweeps are stored."""

    @classmethod
    def from_yaml(cls, path: str | Path, **options: Any) -> Self:
        """Make a sweep from a YAML file of options, such as the `sweep.yaml` in a sweep's folder,
        and from other options, which replace them. Raises `UsageError`."""
        return cls(path, **options)

    @classmethod
    def open(cls, name: str, storage: str = DEFAULT_STORAGE) -> Self:
        """Open a sweep that has been started before; raises `UsageError` if there is none."""
        find_sweep(name, storage)
        return cls(resume=name, storage=storage)

    def run(self, quiet: bool = False) -> Outcome:
        """Run the sweep until it has its trials and the winner is evaluated, or resume it.

        Progress is shown as by the command, on a terminal or below a notebook's cell, unless
        `quiet`. The first Ctrl-C ends it after the current steps, and what is finished is kept. The
        process must not have connected to a Ray cluster other than `address`; a private Ray is
        started and ended if it has connected to none.
        """
        return self._start(self._arguments, quiet)

    def resume(self, quiet: bool = False, **options: Any) -> Outcome:
        """Continue the sweep with its stored settings, and with other values of options that may
        change, e.g. `trials=60`."""
        return self._start([*self._resumed(self.name), *command_line(options)], quiet)

    def select(self, which: int | str, quiet: bool = False) -> Outcome:
        """Make a trial, by number, the result of the sweep, or what the rule `best` or `ensemble`
        chooses, and evaluate it."""
        return self.resume(quiet, select=which)

    def rename(self, new: str, tracking_uri: str = "") -> None:
        """Give the sweep another name, also in MLflow. After an interruption, repeat it. Raises
        `TrackingError` if only the folder has its new name."""
        rename(self.name, new, self.storage, tracking_uri)
        self.name, self._arguments = new, self._resumed(new)

    def archive(self, output: str | Path | None = None, remove: bool = False) -> str:
        """Pack the sweep's folder into a new `.tar.gz` (default: beside the folder), compare both,
        and return the archive's location; with `remove`, remove the folder."""
        return archive(self.name, self.storage, None if output is None else str(output), remove)

    def delete(self, keep_runs: bool = False, tracking_uri: str = "") -> None:
        """Delete the sweep's folder without asking, and its runs in MLflow unless `keep_runs`."""
        delete(self.name, self.storage, tracking_uri, keep_runs)

    def annotate(
        self,
        note: str | None = None,
        tags: Mapping[str, str] | None = None,
        remove_tags: Collection[str] = (),
        tracking_uri: str = "",
    ) -> Annotations:
        """Replace the note (None: keep it), add or replace tags, and remove others, also in MLflow;
        return all annotations. Raises `TrackingError` if only the folder has them."""
        found = annotate(self.name, self.storage, note, tags, remove_tags)
        send_annotations(self.name, self.storage, tracking_uri)
        return found

    @property
    def annotations(self) -> Annotations:
        """The sweep's note and tags."""
        return read_annotations(self.folder.files)

    def _resumed(self, name: str) -> list[str]:
        return command_line({"resume": name, "storage": self.storage})

    def _start(self, arguments: list[str], quiet: bool) -> Outcome:
        # In a notebook even a quiet console leaves an empty output.
        console = Console(quiet=True, force_jupyter=False) if quiet else open_console()
        request = read_request(arguments)
        (outcome,) = run_plans(check_request(request), console, request.retry_failed)
        return outcome

    @property
    def folder(self) -> SweepFolder:
        """The sweep's folder; raises `UsageError` if the sweep has not been started."""
        return find_sweep(self.name, self.storage)

    @property
    def config(self) -> SweepConfig:
        """The sweep's stored configuration."""
        return self.folder.config

    @property
    def results(self) -> dict[int, Result]:
        """The result of every trial that has ended, by number."""
        return self.folder.results()

    @property
    def best_trial(self) -> Result | None:
        """The best complete trial; None if there is none."""
        return best_of(self.results.values())

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation on the test split; None before it."""
        return read_evaluation(self.folder.files)

    @property
    def study(self) -> optuna.Study:
        """The finished trials as an Optuna study in memory; the sweep does not follow changes."""
        second = self.config.second_objective
        return finished_study(self.results, parse_objective(second) if second else None)

    def trials(self) -> pd.DataFrame:
        """Return a row per trial that has ended, by number: state, value, `parameters.*`,
        `metrics.*`, training time in seconds, host, and the reason of a failure."""
        import pandas as pd

        rows = [
            {
                "state": result.state,
                "value": result.value,
                **{f"parameters.{name}": value for name, value in result.parameters.items()},
                **{f"metrics.{name}": value for name, value in result.metrics.items()},
                "train_seconds": result.train_seconds,
                "begun": pd.Timestamp(result.begun, unit="s", tz="UTC"),
                "ended": pd.Timestamp(result.ended, unit="s", tz="UTC"),
                "host": result.host,
                "reason": result.reason,
            }
            for _, result in sorted(self.results.items())
        ]
        return pd.DataFrame(rows, index=pd.Index(sorted(self.results), name="trial"))

    def epochs(self, trial: int) -> pd.DataFrame:
        """Return a row of metrics per epoch of a trial that has ended."""
        import pandas as pd

        rows = read_rows(self.folder.files, trial)
        return pd.DataFrame(rows).set_index("epoch") if rows else pd.DataFrame()

    def load(
        self, trial: int | None = None, episode: str = "", device: str = "auto", data: str = ""
    ) -> Classifier:
        """Open a trained model, to classify images with its `predict`.

        `trial`: a trial as the search trained it (default: the winner, trained on a fresh draw and
        evaluated). `episode`, `device`, `data`: as for `search.predict`. Raises `UsageError`.
        """
        return load(self.name, trial, episode, device, data, self.storage)

    def __repr__(self) -> str:
        return f"Sweep(name={self.name!r}, storage={self.storage!r})"


def load(
    name: str | Path,
    trial: int | None = None,
    episode: str = "",
    device: str = "auto",
    data: str = "",
    storage: str = DEFAULT_STORAGE,
    tracking_uri: str = "",
) -> Classifier:
    """Open a trained model by the name of its sweep, the folder of an export, or its address in
    MLflow's registry (`models:/birds@champion`); options as for `search.predict`.

    Raises `UsageError`, `StorageError`, and `RegistryError` if MLflow does not have the model.
    """
    from search.exporting.model import BEST
    from search.exporting.open_classifier import open_classifier

    chosen = BEST if trial is None else str(trial)
    return open_classifier(str(name), storage, chosen, episode, data, device, tracking_uri)


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as the arguments of `search.run`."""
    repeated = {
        option
        for action in build_parser()._actions
        if isinstance(action, argparse._AppendAction)
        for option in action.option_strings
    }
    found = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            found += [option] if value else []
        elif isinstance(value, Mapping):
            separator = ":" if name == "range" else ""
            found += [f"{option}={key}={_text(own, separator)}" for key, own in value.items()]
        elif option in repeated and isinstance(value, list | tuple):
            found += [f"{option}={_text(own)}" for own in value]
        elif value is not None:
            found.append(f"{option}={_text(value)}")
    return found


def _text(value: Any, separator: str = "") -> str:
    """A value as it is typed; a list's values are separated by commas, or by | if one has some."""
    if isinstance(value, list | tuple):
        parts = [_text(part) for part in value]
        return (separator or ("|" if any("," in part for part in parts) else ",")).join(parts)
    return str(value).lower() if isinstance(value, bool) else str(value)
