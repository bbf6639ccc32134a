"""The ledger under crashes at every moment: finished trials are neither lost nor repeated."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState

from search.core.problems import UsageError
from search.core.pruners import PRUNERS
from search.core.results import (
    FORMAT,
    ISSUED,
    Result,
    State,
    read_results,
    read_rows,
    trial_folder,
    untrained_note,
)
from search.core.samplers import SAMPLERS
from search.ledger.ledger import RETRIES, Ledger, RunningTrial
from spaces.adjust import adjust
from spaces.declared import DeclaredSpace, Float
from spaces.registry import SPACES
from spaces.settings import Settings
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts
from trainables.trial import TrialConfig

SPACE = SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit"))


class PowerCutError(BaseException):
    """The driver dies here."""


class MortalStorage(LocalStorage):
    """A disk whose machine dies at a given write: before it, after it, or in its middle."""

    def __init__(self, root: Path, fuse: list[float]) -> None:
        super().__init__(root)
        self._fuse = fuse

    def child(self, name: str) -> MortalStorage:
        return MortalStorage(self.root / name, self._fuse)

    def write_with(self, name: str, writer: Callable[[Path], None]) -> None:
        self._burn(lambda: super(MortalStorage, self).write_with(name, writer))

    def delete(self, name: str) -> None:
        self._burn(lambda: super(MortalStorage, self).delete(name))

    def append(self, name: str, data: bytes) -> None:
        half = data[: len(data) // 2]
        self._burn(
            lambda: super(MortalStorage, self).append(name, data),
            lambda: super(MortalStorage, self).append(name, half),
        )

    def _burn(self, act: Callable[[], None], half: Callable[[], None] = lambda: None) -> None:
        self._fuse[0] -= 1
        if self._fuse[0] <= -1:
            raise PowerCutError  # it is dead already
        if self._fuse[0] >= 1:
            act()
            return
        moment = self._fuse[1]
        if moment == 1:
            half()
        elif moment == 2:
            act()
        raise PowerCutError


def open_ledger(
    folder: Path | LocalStorage, sampler: str = "random", pruner: str = "asha", seed: int = 0
) -> Ledger:
    sweep = LocalStorage(folder) if isinstance(folder, Path) else folder
    return Ledger(sweep, SPACE, sampler, pruner, seed)


def value_at(number: int, step: int) -> float:
    """What a deterministic trial would report: later trials are mostly worse."""
    return round(0.9 - 0.07 * ((7 * number) % 10) + 0.01 * ((3 * step + number) % 5), 2)


def report(ledger: Ledger, live: RunningTrial, steps: int) -> list[float]:
    values = [value_at(live.number, step) for step in range(1, steps + 1)]
    metrics = {"val/accuracy": values[-1] if values else 0.0, "val/loss": 0.5}
    ledger.report(live.number, values, metrics)
    return values


def test_trial_zero_is_the_papers_setting(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first, second = ledger.ask(), ledger.ask()
    assert (first.number, second.number) == (0, 1)
    assert first.config == SPACE.paper
    assert second.config != SPACE.paper


def test_the_sweeps_seed_reaches_every_trial(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, pruner="none", seed=5)
    assert [ledger.ask().config.seed for _ in range(2)] == [5, 5]


def test_the_papers_setting_is_never_pruned(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, pruner="median")
    first = ledger.ask()
    for _ in range(8):
        live = ledger.ask()
        values = [0.9] * 6
        ledger.report(live.number, values, {"val/accuracy": 0.9})
        ledger.finish(live.number, "COMPLETE")
    other = ledger.ask()
    for live in (first, other):
        ledger.report(live.number, [0.1] * 6, {"val/accuracy": 0.1})
    assert ledger.prune(first.number) is None
    assert ledger.prune(other.number) is not None


def test_a_result_is_committed_before_the_study_hears_of_it(tmp_path: Path) -> None:
    fuse = [1e9, 0.0]
    ledger = open_ledger(MortalStorage(tmp_path, fuse))
    live = ledger.ask()
    values = report(ledger, live, 3)
    fuse[:] = [3, 0]  # metrics.jsonl, result.json, and dead before the rest
    with pytest.raises(PowerCutError):
        ledger.finish(live.number, "COMPLETE")
    again = open_ledger(tmp_path)
    assert again.frozen()[0].state == TrialState.COMPLETE
    assert again.frozen()[0].value == values[-1]
    assert again.results[0].values == tuple(values)
    assert again.ask().number == 1


def test_an_interrupted_trial_keeps_number_configuration_and_reports(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask()
    live = ledger.ask()
    for steps in (1, 2):
        report(ledger, live, steps)
        assert ledger.prune(live.number) is None
    ledger.record(live.number)
    report(ledger, live, 3)  # its worker saves no checkpoint
    again = open_ledger(tmp_path)
    first, second = again.ask(), again.ask()
    assert (second.number, second.config) == (live.number, live.config)
    assert len(second.values) == 2
    report(again, second, 4)
    known = again.frozen()[1].intermediate_values
    assert known == {step: value_at(1, step) for step in range(1, 5)}
    assert first.values == ()


def test_states_and_values_of_ends(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    complete, pruned, failed = ledger.ask(), ledger.ask(), ledger.ask()
    report(ledger, complete, 4)
    ledger.finish(0, "COMPLETE")
    cut = report(ledger, pruned, 2)
    ledger.finish(1, "PRUNED")
    ledger.finish(2, "FAIL", reason="NonFiniteError: train/loss became nan in epoch 3")
    states = [trial.state for trial in ledger.frozen()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert ledger.frozen()[1].value == cut[-1]
    stored = json.loads((tmp_path / "trials/000002/result.json").read_text())
    assert stored["reason"].startswith("NonFiniteError")
    assert stored["value"] is None
    assert failed.number == 2


def test_trials_that_are_not_trained_do_not_count(tmp_path: Path) -> None:
    """Unless there are many: a sweep over a space without other trials must finish."""
    ledger = open_ledger(tmp_path, pruner="none")

    def end(trained: bool) -> None:
        live = ledger.ask()
        live.trained = trained
        report(ledger, live, 1)
        ledger.finish(live.number, "COMPLETE")

    end(trained=False)
    assert (ledger.issued(1), ledger.issued(4)) == (1, 0)
    end(trained=True)
    again = open_ledger(tmp_path, pruner="none")
    assert again.issued(4) == 1
    assert [again.results[number].trained for number in (0, 1)] == [False, True]
    assert again.frozen()[0].value == again.results[0].value
    assert untrained_note(again.results.values()).startswith("Trial 0 cannot flip")
    for _ in range(3):
        end(trained=False)
    assert ledger.issued(4) == 2
    assert untrained_note(ledger.results.values()).startswith("4 trials cannot flip")


def test_a_non_finite_value_is_never_committed(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    live.metrics = {"val/accuracy": float("nan")}
    with pytest.raises(ValueError, match="nan"):
        ledger.finish(0, "COMPLETE")
    assert not (tmp_path / "trials/000000/result.json").exists()


def test_best_breaks_ties_by_loss_then_by_number(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for value, loss in ((0.9, 0.4), (0.95, 0.3), (0.95, 0.2), (0.95, 0.2)):
        live = ledger.ask()
        ledger.report(live.number, [value], {"val/accuracy": value, "val/loss": loss})
        ledger.finish(live.number, "COMPLETE")
    best = ledger.best()
    assert best is not None
    assert best.number == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_reopened_ledger_asks_what_an_unbroken_one_asks(tmp_path: Path, sampler: str) -> None:
    """Twelve trials one by one, past the random start-up: the sampler's memory is the study."""
    asked: list[list[TrialConfig]] = []
    for name, reopen in (("unbroken", False), ("broken", True)):
        folder = tmp_path / name / "sweep"
        folder.mkdir(parents=True)
        ledger = open_ledger(folder, sampler)
        configs = []
        for _ in range(12):
            if reopen:
                ledger = open_ledger(folder, sampler)
            live = ledger.ask()
            configs.append(live.config)
            report(ledger, live, 2)
            ledger.finish(live.number, "COMPLETE")
        asked.append(configs)
    assert asked[0] == asked[1]
    assert len(set(asked[0])) > 6


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_reopened_ledger_prunes_what_an_unbroken_one_prunes(tmp_path: Path, pruner: str) -> None:
    decisions = []
    for name, reopen in (("unbroken", False), ("broken", True)):
        folder = tmp_path / name / "sweep"
        folder.mkdir(parents=True)
        ledger = open_ledger(folder, pruner=pruner)
        said = []
        for _ in range(10):
            live = ledger.ask()
            for step in range(1, 9):
                values = report(ledger, live, step)
                if reopen and step == 4:
                    ledger = open_ledger(folder, pruner=pruner)
                    live = ledger.ask()
                    ledger.report(live.number, values, {"val/accuracy": values[-1]})
                said.append(ledger.prune(live.number) is not None)
                if said[-1]:
                    break
            else:
                ledger.finish(live.number, "COMPLETE")
        decisions.append(said)
    assert decisions[0] == decisions[1]
    assert any(decisions[0]) == (pruner not in ("none",))


STATES: tuple[State, ...] = ("COMPLETE", "PRUNED", "FAIL")


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_verdict_survives_a_power_cut(tmp_path: Path, pruner: str) -> None:
    """The power fails at a write of the pruner's decision, each time at another moment; asked again
    after the restart, it is the same, and so are all later ones."""

    def decide(folder: Path, cuts: Iterator[tuple[int, int]] | None) -> list[object]:
        ended = []
        for number in range(10):
            fuse = [1e9, 0.0]
            ledger = open_ledger(MortalStorage(folder, fuse), pruner=pruner)
            live = ledger.ask()
            for step in range(1, 9):
                report(ledger, live, step)
                if cuts and number > 3:
                    fuse[:] = next(cuts)
                try:
                    if ledger.prune(number) is None:
                        ledger.record(number)
                except PowerCutError:
                    ledger = open_ledger(folder, pruner=pruner)
                    if number not in ledger.results:
                        report(ledger, ledger.ask(), step)  # the worker repeats it
                        ledger.prune(number)
                fuse[:] = [1e9, 0]
                if number in ledger.results:
                    break
            else:
                ledger.finish(number, "COMPLETE")
            ended.append((ledger.results[number].state, ledger.results[number].values))
        return [*ended, study_of(open_ledger(folder))]

    calm = decide(tmp_path / "calm", None)
    moments = list(itertools.product((1, 2, 3, 4), (0, 1, 2)))
    for first in range(0, 12, 2):
        cuts = itertools.cycle(moments[first:] + moments[:first])
        assert decide(tmp_path / f"{first}", cuts) == calm


def finish_some(folder: Path, count: int) -> dict[int, Result]:
    """A ledger with `count` ends of all kinds, and one trial that runs."""
    ledger = open_ledger(folder)
    for number in range(count):
        live = ledger.ask()
        live.rows = {1: {"epoch": 1.0, "time": 5.0, "val/accuracy": 0.5}}
        report(ledger, live, 1 + number % 3)
        ledger.finish(number, STATES[number % 3])
    report(ledger, ledger.ask(), 1)
    return ledger.results


def study_of(ledger: Ledger) -> list[object]:
    return [
        (
            t.number,
            t.state,
            t.value,
            t.params,
            t.distributions,
            t.intermediate_values,
            t.system_attrs,
        )
        for t in ledger.frozen()
    ]


def assert_that_results_are_told(ledger: Ledger, results: dict[int, Result]) -> None:
    assert ledger.results == results
    ended = [t for t in ledger.frozen() if t.state.is_finished()]
    assert [t.number for t in ended] == list(results)
    for trial, result in zip(ended, results.values(), strict=True):
        assert (trial.state.name, trial.value) == (result.state, result.value)
        assert trial.params == result.parameters
        assert tuple(trial.intermediate_values.values()) == result.values
        assert trial.system_attrs == result.notes


def test_a_trial_reported_otherwise_after_a_crash_ends_as_its_result_says(tmp_path: Path) -> None:
    """Another machine's arithmetic may differ in the last digit."""
    ledger = open_ledger(tmp_path)
    report(ledger, ledger.ask(), 2)
    ledger = open_ledger(tmp_path)
    ledger.report(ledger.ask().number, [0.25, 0.5, 0.75], {"val/accuracy": 0.75})
    ledger.finish(0, "COMPLETE")
    again = open_ledger(tmp_path)
    assert_that_results_are_told(again, ledger.results)


def test_deaths_are_counted_and_forgiven_when_the_trial_gets_on(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    ledger.record_crash(0)
    ledger.record_crash(0)
    assert (live.failures, live.retries) == (2, RETRIES - 2)
    again = open_ledger(tmp_path).ask()
    assert (again.failures, again.retries) == (2, RETRIES - 2)
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    report(ledger, live, 1)
    assert (live.failures, live.retries) == (2, RETRIES)
    ledger.record_crash(0)
    again = open_ledger(tmp_path).ask()
    assert (again.failures, again.retries) == (3, RETRIES - 1)
    ledger = open_ledger(tmp_path)
    report(ledger, ledger.ask(), 2)
    assert ledger.finish(0, "COMPLETE").failures == 3


def test_rows_are_kept_beside_the_result(tmp_path: Path) -> None:
    finish_some(tmp_path, 1)
    rows = read_rows(LocalStorage(tmp_path), 0)
    assert rows == [{"epoch": 1.0, "time": 5.0, "val/accuracy": 0.5}]


def test_what_a_late_worker_leaves_behind_is_removed(tmp_path: Path) -> None:
    finish_some(tmp_path, 2)
    for number in (0, 2):  # trial 2 still runs
        (tmp_path / f"trials/00000{number}").mkdir(exist_ok=True)
        (tmp_path / f"trials/00000{number}/checkpoint.safetensors").write_bytes(b"late")
    open_ledger(tmp_path).remove_stale_files()
    left = sorted(p.parent.name for p in tmp_path.glob("trials/*/checkpoint.safetensors"))
    assert left == ["000002"]


def test_a_finished_trial_leaves_no_half_file(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    report(ledger, ledger.ask(), 1)
    half = tmp_path / "trials/000000/.checkpoint.safetensors.killed"
    half.write_bytes(b"half")
    ledger.finish(0, "COMPLETE")
    assert [path.name for path in half.parent.iterdir() if path.name[0] == "."] == []


def test_a_ledger_that_was_taken_over_commits_nothing(tmp_path: Path) -> None:
    is_taken = False

    def guard() -> None:
        if is_taken:
            raise PowerCutError

    sweep = LocalStorage(tmp_path)
    ledger = Ledger(sweep, SPACE, "random", "none", 0, guard)
    report(ledger, ledger.ask(), 1)
    is_taken = True
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    for act in (
        ledger.ask,
        lambda: ledger.record(0),
        lambda: ledger.record_crash(0),
        lambda: ledger.finish(0, "COMPLETE"),
    ):
        with pytest.raises(PowerCutError):
            act()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_a_clock_that_runs_backwards_changes_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = tmp_path / "calm"
    finish_some(calm, 6)
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    odd = tmp_path / "odd"
    finish_some(odd, 6)
    timeless = [
        {n: replace(r, begun=0, ended=0) for n, r in read_results(LocalStorage(f)).items()}
        for f in (calm, odd)
    ]
    assert timeless[0] == timeless[1]
    assert study_of(open_ledger(calm)) == study_of(open_ledger(odd))


def test_a_trial_without_a_record_is_proposed_again(tmp_path: Path) -> None:
    """As in a sweep of a version that kept its running trials in a journal. The same trials come
    again, whatever was found after them."""
    ledger = open_ledger(tmp_path, "tpe")
    expected: dict[int, TrialConfig] = {}
    for number in range(14):
        live = ledger.ask()
        expected[number] = live.config
        report(ledger, live, 2)
        if number not in (0, 5, 12, 13):
            ledger.finish(number, "COMPLETE")
    (tmp_path / "study.journal").write_text("of an earlier release")
    for number in (0, 5, 12):
        (tmp_path / f"trials/{number:06d}/issued.json").unlink()
    again = open_ledger(tmp_path, "tpe")
    assert again.waiting == 4
    found = [again.ask() for _ in range(4)]
    # Trial 5 was proposed while trial 0 ran, as now; the others also when 5 ran.
    assert {live.number: live.config for live in found} == {
        number: expected[number] for number in (0, 5, 12, 13)
    }
    assert again.ask().number == 14


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_a_restart_between_any_two_events_changes_nothing(
    tmp_path: Path, sampler: str, pruner: str
) -> None:
    """Three trials at a time, whose reports alternate: what one reported decides on the others,
    also if the driver was restarted in between."""

    def run(folder: Path, restart_every: int) -> list[object]:
        ledger = open_ledger(folder, sampler, pruner)
        steps: dict[int, int] = {}
        for event in range(1, 60):
            while len(ledger.live) < 3:
                live = ledger.ask()
                steps.setdefault(live.number, len(live.values))
            number = sorted(ledger.live)[event % 3]
            steps[number] += 1
            report(ledger, ledger.live[number], steps[number])
            if steps[number] == 8:
                ledger.finish(number, "COMPLETE")
            elif ledger.prune(number) is None:
                ledger.record(number)
            if restart_every and event % restart_every == 0:
                ledger = open_ledger(folder, sampler, pruner)
        ended = {n: (r.state, r.values, r.config) for n, r in ledger.results.items()}
        return [ended, {n: list(t.params.items()) for n, t in enumerate(ledger.frozen())}]

    undisturbed = run(tmp_path / "calm", 0)
    assert {state for state, _, _ in undisturbed[0].values()} == {"COMPLETE", "PRUNED"}  # type: ignore[attr-defined]
    for restart_every in (1, 7):
        assert run(tmp_path / f"{restart_every}", restart_every) == undisturbed


def test_a_step_is_decided_on_once(tmp_path: Path) -> None:
    """A worker that continues from an older checkpoint reports its last steps again; the trials
    that have ended meanwhile do not change what was decided."""
    ledger = open_ledger(tmp_path, pruner="median")
    ledger.ask()
    late = ledger.ask()
    ledger.report(late.number, [0.5, 0.5, 0.5], {"val/accuracy": 0.5})
    assert ledger.prune(late.number) is None
    ledger.record(late.number)
    for _ in range(6):
        live = ledger.ask()
        ledger.report(live.number, [0.9] * 8, {"val/accuracy": 0.9})
        ledger.finish(live.number, "COMPLETE")
    again = open_ledger(tmp_path, pruner="median")
    (late,) = [live for live in (again.ask(), again.ask()) if live.number == 1]
    again.report(1, [0.5, 0.5], {"val/accuracy": 0.5})
    assert again.prune(1) is None
    again.report(1, [0.5, 0.5, 0.5], {"val/accuracy": 0.5})
    assert again.prune(1) is None
    again.report(1, [0.5, 0.5, 0.5, 0.5], {"val/accuracy": 0.5})
    assert again.prune(1) is not None


@pytest.mark.parametrize(
    "fuse_at", [None, *((writes, moment) for writes in (1, 2, 3, 4, 5) for moment in (0, 1, 2))]
)
def test_failed_trials_are_tried_again_on_request(
    tmp_path: Path, fuse_at: tuple[int, int] | None
) -> None:
    """Under their numbers and configurations; the earlier reasons are kept. A power cut at any
    write leaves the failure or the new attempt."""
    ledger = open_ledger(tmp_path)
    configs = []
    for number in range(6):
        live = ledger.ask()
        configs.append(live.config)
        if number in (1, 4):  # so good that the pruner lets it go on
            ledger.report(number, [0.99] * 3, {"val/accuracy": 0.99})
        else:
            report(ledger, live, 3)
        if ledger.prune(number) is None:
            ledger.finish(number, "FAIL" if number in (1, 4) else "COMPLETE", reason="no memory")
    results = {n: r for n, r in ledger.results.items() if r.state != "FAIL"}
    assert len(results) == 4
    assert open_ledger(tmp_path).waiting == 0
    fuse = [float(n) for n in fuse_at] if fuse_at else [1e9, 0.0]
    try:
        retrying(MortalStorage(tmp_path, fuse))
    except PowerCutError:
        left = open_ledger(tmp_path)
        assert left.waiting + sum(r.state == "FAIL" for r in left.results.values()) == 2
    again = retrying(LocalStorage(tmp_path))
    assert again.results == results
    for number in (1, 4):
        live = again.ask()
        assert (live.number, live.config) == (number, configs[number])
        assert (live.values, live.failures, live.retries) == ((), 0, RETRIES)
        report(again, live, 8)
        again.finish(number, "COMPLETE" if number == 1 else "FAIL", reason="again")
    assert again.results[1].earlier_failures == ("no memory",)
    third = retrying(LocalStorage(tmp_path)).ask()
    assert third.issued.earlier_failures == ("no memory", "again")
    assert again.ask().number == 6
    assert not any("completed_rung" in key for key in third.issued.system_attrs)


def retrying(sweep: LocalStorage) -> Ledger:
    return Ledger(sweep, SPACE, "random", "asha", 0, retry_failed=True)


@settings(max_examples=60, deadline=None)
@given(
    field=st.sampled_from(["parameters", "distributions", "notes", "study_attrs", "values"]),
    value=st.sampled_from(
        [
            {},
            {"lr": None},
            {"lr": [1]},
            {"lr": "[" * 100_000},
            {"lr": "{}"},
            {"x": 1},
            [],
            [0.5] * 9,
        ]
    ),
)
def test_records_that_optuna_refuses_are_errors_of_one_line(
    field: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("foreign")
    finish_some(folder, 2)
    path = folder / "trials/000000/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    try:
        open_ledger(folder, "tpe").ask()
    except UsageError as error:
        (line,) = error.problems
        assert "trials/000000/result.json" in line
        assert len(line) < 1000


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "part", "record", "complete", "prune", "fail", "strike", "reopen", "cut"]
        ),
        st.integers(0, 3),
        st.integers(1, 9),
        st.integers(0, 2),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=EVENTS)
def test_any_history_keeps_every_finished_trial(
    events: list[tuple[str, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Asks, reports and ends in any order, with the power cut at any write: before it, after it,
    or in its middle."""
    folder = tmp_path_factory.mktemp("history")
    fuse = [1e9, 0.0]
    ledger = open_ledger(MortalStorage(folder, fuse))
    parts: dict[int, int] = {}
    configs: dict[int, TrialConfig] = {}
    ended: dict[int, Result] = {}

    def act(event: str, which: int) -> None:
        if event == "ask":
            live = ledger.ask()
            assert live.number not in ended
            if parts.get(live.number):  # it has been reported on: it must be the same trial
                assert configs[live.number] == live.config
            configs[live.number] = live.config
            return
        running = sorted(ledger.live)
        if not running:
            return
        number = running[which % len(running)]
        if event == "part":
            report(ledger, ledger.live[number], parts.get(number, 0) + 1)
            parts[number] = parts.get(number, 0) + 1
        elif event == "record":
            ledger.record(number)
        elif event == "strike":
            ledger.record_crash(number)
        elif event == "fail":
            ledger.finish(number, "FAIL", reason="it failed")
        elif event in ("complete", "prune"):
            report(ledger, ledger.live[number], max(1, parts.get(number, 0)))
            ledger.finish(number, "PRUNED" if event == "prune" else "COMPLETE")

    def reopen() -> Ledger:
        fuse[:] = [1e9, 0]
        return open_ledger(MortalStorage(folder, fuse))

    for event, which, writes, moment in events:
        if event == "cut":
            fuse[:] = [writes, moment]
            continue
        try:
            if event == "reopen":
                ledger = open_ledger(MortalStorage(folder, fuse))
            else:
                act(event, which)
        except PowerCutError:
            ledger = reopen()
        committed = read_results(LocalStorage(folder))
        assert {number: committed[number] for number in ended} == ended
        ended = committed
    final = reopen()
    assert final.results == ended
    trials = final.frozen()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    for number, result in ended.items():
        assert trials[number].state == TrialState[result.state]
        assert trials[number].params == result.parameters
        assert tuple(trials[number].intermediate_values.values()) == result.values
        if result.state == "COMPLETE":
            assert trials[number].value == result.value
    unfinished = {t.number for t in trials if t.state == TrialState.RUNNING}
    assert final.waiting == len(unfinished)
    assert unfinished.isdisjoint(ended)
    assert not list(folder.rglob("*/.*"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"state": "DONE"}, "'state' must be 'COMPLETE', 'PRUNED' or 'FAIL', got \"DONE\""),
        ({"state": ["COMPLETE"]}, "'state' must be"),
        ({"value": None}, "'value' must be null if and only if state is FAIL, got null"),
        ({"state": "FAIL"}, "'value' must be null if and only if state is FAIL, got 0.93"),
        ({"value": "0.7"}, "'value' must be a valid number, got \"0.7\""),
        ({"value": True}, "'value' must be a valid number, got true"),
        ({"value": 3.7}, "'value' must be less than or equal to 1, got 3.7"),
        ({"value": math.nan}, "the file must be valid JSON in UTF-8"),
        ({"values": [0.5, 1.5]}, "'values[1]' must be less than or equal to 1, got 1.5"),
        ({"values": 0.5}, "'values' must be a valid array, got 0.5"),
        ({"metrics": {"val/accuracy": 90.0}}, "'metrics.val/accuracy' must be between 0 and 1"),
        ({"metrics": {"val/loss": "low"}}, "'metrics.val/loss' must be a valid number"),
        ({"number": 1}, "'number' must be that of the folder, got 1"),
        ({"number": 10**30}, "'number' must be a number of at most 64 bits"),
        ({"newer": 1}, "'newer' is unknown to this version"),
        (
            {"config": {"method": "gone", "preset": "x", "method_config": {}, "optim": {}}},
            "'config.method' must be a method's",
        ),
        ({"config": None}, "'config' must be"),
        ({"distributions": {"lr": "{}"}}, "must have a distribution in Optuna's JSON"),
        ({"distributions": 5}, "'distributions' must be"),
        ({"parameters": {"lr": 0.1}}, "'parameters.residual' is missing"),
        ({"begun": 1e300}, "Optuna refuses it"),
    ],
)
def test_a_result_of_foreign_content_is_refused(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    ledger = open_ledger(tmp_path)
    report(ledger, ledger.ask(), 1)
    ledger.finish(0, "COMPLETE")
    path = tmp_path / "trials/000000/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=re.escape(why)) as found:
        open_ledger(tmp_path)
    assert "'trials/000000/result.json' is not: " in str(found.value)


def test_a_result_whose_method_has_other_options_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask()
    ledger.finish(0, "FAIL")
    path = tmp_path / "trials/000000/result.json"
    path.write_text(path.read_text().replace('"learn_alpha": f', '"newer": 1, "learn_alpha": f'))
    with pytest.raises(UsageError, match=r"'config.method_config.newer' is unknown"):
        open_ledger(tmp_path)


@pytest.mark.parametrize(
    ("name", "distribution", "why"),
    [
        ("lrate", FloatDistribution(1e-4, 0.1, log=True), "'lr' is not found"),
        ("lr", FloatDistribution(1e-4, 0.1), "log"),
        ("lr", CategoricalDistribution((0.01, 0.05)), "different distribution kind"),
        ("lr", FloatDistribution(1e-6, 0.5, log=True), ""),
    ],
)
def test_trials_of_another_version_s_space_are_refused_and_unchanged(
    tmp_path: Path, name: str, distribution: BaseDistribution, why: str
) -> None:
    """Other names or kinds of parameters; other ends of an interval do not matter."""
    assert isinstance(SPACE, DeclaredSpace)
    searched = replace(SPACE, ranges={"lr": Float(1e-4, 0.1, log=True)})
    ledger = Ledger(LocalStorage(tmp_path), searched, "tpe", "none", 0)
    report(ledger, ledger.ask(), 1)
    ledger.finish(0, "COMPLETE")
    ledger.ask()
    old = {"parameters": {name: 0.01}, "distributions": {name: distribution_to_json(distribution)}}
    for path in tmp_path.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | old))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert len(before) == 2
    if not why:
        assert Ledger(LocalStorage(tmp_path), searched, "tpe", "none", 0).waiting == 1
        return
    with pytest.raises(UsageError, match=why) as found:
        Ledger(LocalStorage(tmp_path), searched, "tpe", "none", 0)
    (problem,) = found.value.problems
    assert f"(of {name}) does not fit --space taskres" in problem
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}


def test_another_formats_result_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    report(ledger, live, 1)
    ledger.finish(0, "COMPLETE")
    path = tmp_path / "trials/000000/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(
        UsageError, match=f"'format' is {FORMAT + 1}, this version reads format {FORMAT}"
    ):
        open_ledger(tmp_path)


def grid_ledger(folder: Path) -> Ledger:
    grid = Settings(grid={"alpha": (0.1, 0.5, 1.0), "residual": ("text", "both")})
    return Ledger(LocalStorage(folder), adjust(SPACE, grid), "grid", "none", 0)


def test_a_grid_runs_every_combination_once(tmp_path: Path) -> None:
    """Also with several slots, a kill, and a trial whose record was lost."""
    ledger = grid_ledger(tmp_path)
    running = [ledger.ask() for _ in range(3)]
    for live in running[1:]:
        report(ledger, live, 2)
        ledger.finish(live.number, "COMPLETE")
    (tmp_path / trial_folder(0) / ISSUED).unlink()
    again = grid_ledger(tmp_path)
    assert (again.waiting, again.issued(99)) == (1, 3)
    first = again.ask()
    assert (first.number, first.parameters) == (0, running[0].parameters)
    for _ in range(3):
        again.ask()
    parameters = {n: t.params for n, t in enumerate(again.frozen())}
    assert len({tuple(sorted(p.items())) for p in parameters.values()}) == 6
    assert parameters == {n: t.params for n, t in enumerate(grid_ledger(tmp_path).frozen())}


def test_trials_in_the_queue_come_first(tmp_path: Path) -> None:
    space = adjust(SPACE, Settings(enqueue=({"alpha": 0.7}, {"lr": 0.01, "epochs": 50})))
    ledger = Ledger(LocalStorage(tmp_path), space, "random", "none", 0)
    assert ledger.ask().config == SPACE.paper
    assert ledger.ask().parameters["alpha"] == 0.7
    again = Ledger(LocalStorage(tmp_path), space, "random", "none", 0)
    assert [again.ask().number for _ in range(2)] == [0, 1]  # the interrupted ones
    third, fourth = again.ask(), again.ask()
    assert (third.number, third.parameters["lr"], third.parameters["epochs"]) == (2, 0.01, 50)
    assert fourth.parameters["lr"] not in (0.01, SPACE.first_parameters["lr"])
