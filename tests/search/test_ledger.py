"""The ledger under crashes at every moment: nothing finished is lost, nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from search.ledger import Ledger, Live, Result
from search.lock import SweepLock
from search.problems import UsageError
from search.pruners import PRUNERS
from search.samplers import SAMPLERS
from spaces.base import Setting
from spaces.registry import SPACES
from trainables.trial import TrialConfig

SPACE = SPACES["taskres"].build(Setting("digits", 4, 40, "vit"))


class PowerCutError(Exception):
    """The driver dies here."""


def open_ledger(folder: Path, sampler: str = "random", pruner: str = "asha") -> Ledger:
    return Ledger(folder, SPACE, sampler, pruner, seed=0)


def value_at(number: int, step: int) -> float:
    """What a deterministic trial would report: later trials are mostly worse."""
    return 0.9 - 0.07 * ((7 * number) % 10) + 0.01 * ((3 * step + number) % 5)


def report(ledger: Ledger, live: Live, steps: int) -> list[float]:
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
    ledger = Ledger(tmp_path, SPACE, "random", "none", seed=5)
    assert [ledger.ask().config.seed for _ in range(2)] == [5, 5]


def test_the_papers_setting_is_never_pruned(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, pruner="median")
    first = ledger.ask()
    for _ in range(8):
        live = ledger.ask()
        values = [0.9] * 6
        ledger.report(live.number, values, {"val/accuracy": 0.9})
        ledger.finish(live.number, "COMPLETE", values)
    other = ledger.ask()
    for live in (first, other):
        ledger.report(live.number, [0.1] * 6, {"val/accuracy": 0.1})
    assert not ledger.should_prune(first.number)
    assert ledger.should_prune(other.number)


def test_a_result_is_committed_before_the_study_hears_of_it(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    values = report(ledger, live, 3)
    with (
        patch.object(Ledger, "_tell", side_effect=PowerCutError),
        pytest.raises(PowerCutError),
    ):
        ledger.finish(live.number, "COMPLETE", values)
    assert ledger.frozen()[0].state == TrialState.RUNNING
    again = open_ledger(tmp_path)
    assert again.frozen()[0].state == TrialState.COMPLETE
    assert again.frozen()[0].value == values[-1]
    assert again.results[0].values == tuple(values)
    assert again.ask().number == 1


def test_a_half_asked_trial_is_completed(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask()
    trial = ledger.study.ask()
    trial.suggest_categorical("learn_alpha", [False, True])  # and here the driver dies
    again = open_ledger(tmp_path)
    assert again.waiting == 2
    first, second = again.ask(), again.ask()
    assert (first.number, second.number) == (0, 1)
    assert second.config.problems() == []
    assert "lr" in second.trial.params


def test_an_interrupted_trial_keeps_number_configuration_and_reports(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask()
    live = ledger.ask()
    report(ledger, live, 2)
    again = open_ledger(tmp_path)
    first, second = again.ask(), again.ask()
    assert (second.number, second.config) == (live.number, live.config)
    assert second.reported == 2
    report(again, second, 4)
    known = again.frozen()[1].intermediate_values
    assert known == {step: value_at(1, step) for step in range(1, 5)}
    assert first.reported == 0


def test_states_and_values_of_ends(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    complete, pruned, failed = ledger.ask(), ledger.ask(), ledger.ask()
    full = report(ledger, complete, 4)
    ledger.finish(0, "COMPLETE", full)
    cut = report(ledger, pruned, 2)
    ledger.finish(1, "PRUNED", cut)
    ledger.finish(2, "FAIL", reason="NonFiniteError: train/loss became nan in epoch 3")
    states = [trial.state for trial in ledger.frozen()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert ledger.frozen()[1].value == cut[-1]
    stored = json.loads((ledger.trial_folder(2) / "result.json").read_text())
    assert stored["reason"].startswith("NonFiniteError")
    assert stored["value"] is None
    assert failed.number == 2


def test_a_non_finite_value_is_never_committed(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    live.metrics = {"val/accuracy": float("nan")}
    with pytest.raises(ValueError, match="nan"):
        ledger.finish(0, "COMPLETE", [float("nan")])
    assert not (ledger.trial_folder(0) / "result.json").exists()


def test_best_breaks_ties_by_loss_then_by_number(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for value, loss in ((0.9, 0.4), (0.95, 0.3), (0.95, 0.2), (0.95, 0.2)):
        live = ledger.ask()
        ledger.report(live.number, [value], {"val/accuracy": value, "val/loss": loss})
        ledger.finish(live.number, "COMPLETE", [value])
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
            ledger.finish(live.number, "COMPLETE", report(ledger, live, 2))
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
                said.append(ledger.should_prune(live.number))
                if said[-1]:
                    ledger.finish(live.number, "PRUNED", values)
                    break
            else:
                ledger.finish(live.number, "COMPLETE", values)
        decisions.append(said)
    assert decisions[0] == decisions[1]
    assert any(decisions[0]) == (pruner not in ("none",))


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "part", "complete", "prune", "fail", "reopen", "cut"]),
        st.integers(0, 3),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=EVENTS)
def test_any_history_keeps_every_finished_trial(
    events: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("history")
    ledger = open_ledger(folder)
    parts: dict[int, int] = {}
    ended: dict[int, Result] = {}
    issued_after_end: list[int] = []
    for event, which in events:
        running = sorted(ledger.live)
        number = running[which % len(running)] if running else None
        if event == "ask":
            live = ledger.ask()
            issued_after_end += [live.number] if live.number in ended else []
        elif event == "reopen":
            ledger = open_ledger(folder)
        elif number is None:
            continue
        elif event == "part":
            parts[number] = parts.get(number, 0) + 1
            report(ledger, ledger.live[number], parts[number])
        elif event == "fail":
            ended[number] = ledger.finish(number, "FAIL", reason="it failed")
        else:
            values = report(ledger, ledger.live[number], max(1, parts.get(number, 0)))
            state = "PRUNED" if event == "prune" else "COMPLETE"
            if event == "cut":  # the power fails between the commit and the study's hearing of it
                with (
                    patch.object(Ledger, "_tell", side_effect=PowerCutError),
                    pytest.raises(PowerCutError),
                ):
                    ledger.finish(number, "COMPLETE", values)
                ledger = open_ledger(folder)
                ended[number] = ledger.results[number]
            else:
                ended[number] = ledger.finish(number, state, values)
    final = open_ledger(folder)
    assert not issued_after_end
    assert final.results == ended
    trials = final.frozen()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    for number, result in ended.items():
        assert trials[number].state == TrialState[result.state]
        if result.state == "COMPLETE":
            assert trials[number].value == result.value
    unfinished = {t.number for t in trials if t.state == TrialState.RUNNING}
    assert final.waiting == len(unfinished)
    assert unfinished.isdisjoint(ended)


def test_another_formats_result_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    ledger.finish(0, "COMPLETE", report(ledger, live, 1))
    path = ledger.trial_folder(0) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(UsageError, match="format 2, this version reads 1"):
        open_ledger(tmp_path)


def test_the_lock_is_free_after_its_holder(tmp_path: Path) -> None:
    with SweepLock(tmp_path), pytest.raises(UsageError, match="One driver at a time"):
        SweepLock(tmp_path).__enter__()
    with SweepLock(tmp_path):
        pass
