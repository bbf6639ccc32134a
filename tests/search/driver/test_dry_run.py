"""`--dry-run`: what a sweep would do, and what it would cost."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from search.core.samplers import SAMPLERS
from search.driver import dry_run as dry_run_module
from search.driver import preflight as preflight_module
from search.driver.backbone_probe import BackboneProbe
from search.driver.cost_estimate import Cost, Size, StageCost, peak_memory, rehearse
from search.driver.dry_run import estimate, first_trials
from search.driver.preflight import Plan, preflight
from search.ledger.ledger import Ledger
from search.options import configure
from search.run import main
from search.terminal.ranges import search_ranges
from trainables.core.storage import LocalStorage


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with the look at the backbone in this process: another costs four seconds a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        preflight_module, "BackboneProbeProcess", lambda s: nullcontext(BackboneProbe(s))
    )


def plan_of(*options: str) -> Plan:
    return preflight(configure(options), trial_write=False)


def driver(plan: Plan) -> Ledger:
    """The ledger of a real sweep of this plan."""
    config = plan.config
    sweep = LocalStorage(Path(config.location))
    sampler, pruner = config.sampler, config.pruner
    return Ledger(sweep, plan.space, sampler, pruner, config.seed)


def test_everything_is_told_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--space", "taskres", "--shots", "1", "--seeds", "1", "--name", "mine")
    assert main([*options, "--trials", "3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert list(tmp_path.rglob("*")) == []
    plan = plan_of(*options)
    for name, value in plan.fingerprints.items():
        assert f"fingerprint, {name}" in out
        assert value in out
    for setting in ("sampler", "pruner", "seed", "shots", "backbone", "folder", "placement"):
        assert f"\n{setting} " in out
    assert str(tmp_path / "sweeps/mine") in out
    for name in plan.space.first_parameters:
        assert f"\n{name} " in out
    assert "trial   0 (the paper's setting)" in out
    assert "trial   2  " in out
    assert "trial   3  " not in out
    assert "Estimate of time: " in out
    assert "Estimate of memory: " in out
    assert "10 of the real training images" in out


def test_the_papers_settings_of_several_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    """What differs between them is marked, in the first trial and in the table."""
    options = ("--space", "taskres", "--dataset", "digits,digits-rotated", "--shots", "1,16")
    assert main([*options, "--seeds", "1", "--trials", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    (first,) = (line for line in out.splitlines() if line.startswith("trial   0"))
    assert "epochs per data set" in first
    assert "lr 0.002" in first
    (row,) = (line for line in out.splitlines() if line.startswith("epochs "))
    assert row.rstrip().endswith("per data set")
    assert "trial   1  residual" in out
    assert out.count("per data set") == 2


@pytest.mark.parametrize(("protocol", "leak"), [("few-shot", "0.3"), ("base-to-new", "1")])
def test_the_papers_setting_is_that_of_the_protocol(protocol: str, leak: str) -> None:
    options = ("--space", "rmt", "--shots", "16", "--trials", "1", "--protocol", protocol)
    plan = plan_of(*options)
    assert f"{plan.space.first_parameters['leak']:g}" == leak
    assert f"{vars(plan.space.paper.method_config)['leak']:g}" == leak


def test_mistakes_are_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "rtm", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert "Did you mean 'rmt'?" in captured.err
    assert captured.out == ""
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_first_trials_are_those_that_the_sweep_would_ask(sampler: str) -> None:
    plan = plan_of("--space", "rmt", "--sampler", sampler, "--name", "x", "--seed", "3")
    told, ended = first_trials(plan)
    assert ended == 0
    assert len(told) == 8
    assert not Path("sweeps").exists()
    ledger = driver(plan)
    for number, live in enumerate(told):
        asked = ledger.ask()
        assert (asked.number, asked.parameters) == (number, live.parameters)
        assert asked.config == live.config
        if number % 2:  # what they find does not matter
            ledger.report(number, [number / 10], {"val/accuracy": number / 10})
            ledger.finish(number, "COMPLETE")


def test_a_sweep_that_goes_on(tmp_path: Path) -> None:
    plan = plan_of("--space", "taskres", "--name", "x", "--trials", "20")
    ledger = driver(plan)
    for number in range(10):
        ledger.ask()
        ledger.report(number, [number / 10], {"val/accuracy": number / 10})
        ledger.finish(number, "COMPLETE")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    told, ended = first_trials(plan)
    assert ended == 10
    (live,) = told  # the others depend on what it finds
    assert live.number == 10
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert ledger.ask().parameters == live.parameters


def test_the_ranges_are_those_of_the_space() -> None:
    ranges = search_ranges(plan_of("--space", "rmt").space)
    assert ranges["threshold"] == ("0.001 to 0.009", True)
    assert ranges["norm_weight"] == ("one of 0, 1e-05, 0.0001, 0.001, 0.01", True)
    assert ranges["patch_embedding"] == ("one of false, true", False)
    assert ranges["epochs"] == ("5 to 15", True)
    assert ranges["flip_budget"] == ("1 to 10", True)


def test_methods_in_closed_form_and_stages_are_timed() -> None:
    closed = plan_of("--space", "gda", "--shots", "1")
    cost = rehearse(closed.space.paper, closed.config.task, "", "cpu", 1)
    assert cost.images == 10
    assert [stage.step + stage.image for stage in cost.stages] == [0.0]
    assert cost.stages[0].ready + cost.stages[0].validate > 0
    assert 2**27 < cost.memory < 2**34
    staged = plan_of("--space", "rmt+taskres", "--shots", "1", "--seeds", "1")
    cost = rehearse(staged.space.paper, staged.config.task, "", "cpu", 1)
    assert len(cost.stages) == 2
    assert all(stage.step + stage.image > 0 and stage.steps >= 3 for stage in cost.stages)
    assert Cost.from_dict(json.loads(json.dumps(asdict(cost)))) == cost


def test_an_estimate_is_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("--space", "rmt", "--shots", "2,4", "--trials", "3", "--max-concurrent", "1")
    stage = StageCost(ready=1.0, step=0.0, image=0.1, validate=0.5, steps=5)
    gib = 2**30
    cost = Cost(20, 20, 10.0, 0.0, (stage,), 3 * gib, 0, episode_memory=gib)
    paper = plan.space.paper
    # 2 shots: 20 + 20 images, 4 shots: 40 + 40, of which a step takes 32; an image costs 0.1 s in
    # training, and 0.025 s in validation.
    sizes = [Size(20, 20), Size(40, 40)]
    trial = 2 * 1.0 + paper.epochs * (2.0 + 0.5 + 3.2 + 1.0)
    assert cost.seconds(paper, sizes) == pytest.approx(trial)
    monkeypatch.setattr(dry_run_module, "peak_memory", lambda: gib)
    monkeypatch.setattr(dry_run_module, "duration", lambda seconds: f"<{seconds:.2f}>")
    time_line, memory_line, _ = estimate(plan, [paper], 2, cost)
    assert f"<{10 + 3 * trial:.2f}> for the trials" in time_line
    # Winner and paper's setting are trained on every fresh draw of both numbers of shots.
    assert plan.config.eval_seeds == 3
    assert f"<{2 * 3 * trial:.2f}> for training the winner" in time_line
    assert "augmented views" not in time_line
    # The timed episode holds 1 of the 3 GiB; the larger one holds twice as much.
    assert "5.0 GiB per trial of 2 episodes, 6.0 GiB in all" in memory_line
    assert peak_memory() > 2**27


def test_small_batches_cost_more_steps() -> None:
    """At one shot mask tuning takes a step per image, the paper's setting one step per epoch."""
    plan = plan_of("--space", "rmt", "--shots", "1", "--trials", "6")
    stage = StageCost(ready=0.0, step=1.0, image=0.25, validate=0.0, steps=5)
    cost = Cost(10, 10, 0.0, 0.0, (stage,), 2**30, 0)
    paper, *others = (live.config for live in first_trials(plan)[0])
    assert cost.seconds(paper, [Size(10, 10)]) == paper.epochs * (1.0 + 2.5)
    for config in others:
        assert config.optim.batch_size == 1
        assert cost.seconds(config, [Size(10, 10)]) == config.epochs * 10 * 1.25
    assert cost.seconds(paper, [Size(10, 10, models=4)]) == 4 * paper.epochs * 3.5


def test_more_episodes_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure grows with data sets, shots and draws."""
    monkeypatch.setattr(dry_run_module, "duration", lambda seconds: f"<{seconds:.4f}>")
    stage = StageCost(ready=0.5, step=0.0, image=0.05, validate=0.5, steps=5)
    cost = Cost(20, 20, 1.0, 0.001, (stage,), 2**30, 2**28, 2**28, 2**27)

    def figures(*options: str) -> list[float]:
        plan = plan_of("--space", "taskres", "--max-concurrent", "1", *options)
        lines = estimate(plan, [plan.space.paper], 1, cost)
        times = [float(found) for found in re.findall(r"<([\d.]+)>", lines[0])]
        return times + [float(found) for found in re.findall(r"([\d.]+) GiB", lines[1])]

    one = figures("--shots", "2", "--seeds", "1")
    for options in (
        ("--shots", "2", "--seeds", "1,2"),
        ("--shots", "2,4", "--seeds", "1"),
        ("--shots", "2", "--seeds", "1", "--dataset", "digits,digits-rotated"),
    ):
        more = figures(*options)
        assert len(more) == len(one)
        both_draws_are_fresh = options[3] == "1,2"
        for place, (few, many) in enumerate(zip(one, more, strict=True)):
            is_evaluation = place == 2
            assert many > few or (is_evaluation and both_draws_are_fresh), (options, one, more)


def test_augmented_views_are_named_if_they_are_most_of_the_time() -> None:
    plan = plan_of("--space", "taskres", "--shots", "2", "--seeds", "1", "--max-concurrent", "1")
    paper = plan.space.paper
    quick = StageCost(ready=0.0, step=0.0, image=1e-5, validate=0.001, steps=5)
    slow = Cost(20, 20, 1.0, encode=1.0, stages=(quick,), memory=2**30, gpu_memory=0)
    crops = replace(paper, crop_scale=0.5)
    assert "augmented views" in estimate(plan, [crops, paper], 1, slow)[0]
    assert "augmented views" not in estimate(plan, [replace(paper, crop_scale=1.0)], 1, slow)[0]
