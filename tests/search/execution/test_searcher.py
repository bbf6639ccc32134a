"""Deaths of workers, as Tune tells them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.experiment import Trial

from search.execution.observer import Observers
from search.execution.searcher import StudyScheduler
from search.ledger.ledger import Ledger

DEATH = """Failure # {} (occurred at 2026-11-26_07-49-53)
The actor died unexpectedly before finishing this task.
\tclass_name: Trainable
\tactor_id: {}
\tpid: 23235
"""


class Strikes:
    """As much of a ledger as is asked about deaths."""

    def __init__(self) -> None:
        self.live = {7: object()}
        self.count = 0

    def record_crash(self, number: int) -> None:
        assert number == 7
        self.count += 1


def scheduler(ledger: Strikes) -> StudyScheduler:
    return StudyScheduler(cast(Ledger, ledger), Observers([]), lambda reason: None)


def tune_trial(folder: Path, text: str = "", number: int = 7) -> Trial:
    file = folder / "error.txt"
    if text:
        with open(file, "a", encoding="utf-8") as log:  # as Tune does
            log.write(text)
    named: Any = SimpleNamespace(
        config={"assignment": {"number": number}}, error_file=str(file) if text else None
    )
    return cast(Trial, named)


def test_a_death_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    ledger = Strikes()
    tune = scheduler(ledger)
    tune.on_trial_error(None, tune_trial(tmp_path, DEATH.format(1, "aa11")))
    tune.on_trial_error(None, tune_trial(tmp_path, DEATH.format(2, "aa11")))
    assert ledger.count == 1
    tune.on_trial_error(None, tune_trial(tmp_path, DEATH.format(3, "bb22")))
    assert ledger.count == 2


def test_an_error_that_names_no_worker_counts_each_time(tmp_path: Path) -> None:
    ledger = Strikes()
    tune = scheduler(ledger)
    for _ in range(2):
        tune.on_trial_error(None, tune_trial(tmp_path, "Failure # 1\nout of memory\n"))
    tune.on_trial_error(None, tune_trial(tmp_path))
    assert ledger.count == 3


def test_a_trial_that_has_ended_is_not_struck(tmp_path: Path) -> None:
    ledger = Strikes()
    scheduler(ledger).on_trial_error(None, tune_trial(tmp_path, DEATH.format(1, "aa11"), number=8))
    assert ledger.count == 0
