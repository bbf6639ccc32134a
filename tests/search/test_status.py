"""`search.list` and `search.status`: the state of sweeps, with and without a running driver."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from search import list as list_module
from search import status
from search.core.lock import SweepLock
from search.core.sweep_folder import SweepFolder
from search.driver import preflight as preflight_module
from search.driver.backbone_probe import BackboneProbe
from search.driver.preflight import Plan, adopt, preflight
from search.evaluation.record import EVALUATION, Evaluation, Label, Score
from search.ledger.ledger import Ledger
from search.options import configure
from search.terminal.details import load_details
from search.terminal.sweep_status import ago, duration, read_standing
from search.tracking.marks import SWEEP_RUN, Mark, open_marks
from tests.servers import s3_server
from trainables.core.storage import open_storage

MARKUP = "[red]folder[/red]"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The plan of a sweep that does not exist yet."""
    storage = tmp_path_factory.mktemp("plans")
    options = ("--space", "taskres", "--shots", "2", "--trials", "4", "--storage", str(storage))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            preflight_module, "BackboneProbeProcess", lambda s: nullcontext(BackboneProbe(s))
        )
        return preflight(configure([*options, "--name", "mine"]))


class World:
    """A sweep whose driver is this process: its real folder, lock and ledger, but no Ray."""

    def __init__(self, plan: Plan, storage: str) -> None:
        self.storage = storage
        self.plan = replace(plan, config=replace(plan.config, storage=storage))
        self.sweep = open_storage(storage).child("mine")
        self._stack = ExitStack()

    def __enter__(self) -> World:
        self._stack.enter_context(SweepLock(self.sweep))
        adopt(self.plan, SweepFolder(self.sweep))
        config = self.plan.config
        self.ledger = Ledger(
            self.sweep, self.plan.space, config.sampler, config.pruner, config.seed
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def end(self, value: float, state: str = "COMPLETE", **why: str) -> None:
        number = self.ledger.ask().number
        self.ledger.report(number, [value / 2, value], {"val/accuracy": value})
        self.ledger.finish(number, state, **why)  # type: ignore[arg-type]


def told(capsys: pytest.CaptureFixture[str], world: World, *options: str) -> str:
    assert status.main(["mine", "--storage", world.storage, *options]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], world: World, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(capsys, world, "--json", *options))
    return found


def snapshot(storage: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in storage.rglob("*") if p.is_file()}


def test_a_sweep_from_its_first_trial_to_its_last(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with World(plan, str(tmp_path)) as world:
        world.end(0.8)
        running = world.ledger.ask()
        world.ledger.report(running.number, [0.25, 0.5, 0.625], {"val/accuracy": 0.625})
        world.ledger.record_crash(running.number)
        before = snapshot(tmp_path)
        text = told(capsys, world)
        assert f"running, by process {os.getpid()}" in text
        assert "1 of 4 ended: 1 complete; 1 unfinished" in text
        assert "62.5 %" in text
        found = as_json(capsys, world)
        assert found["state"] == "running"
        (trial,) = found["unfinished"]
        assert (trial["number"], trial["parts"], trial["value"], trial["deaths"]) == (
            1,
            3,
            0.625,
            1,
        )
        assert trial["parameters"] == json.loads(json.dumps(running.parameters))
        changed = {k for k, v in snapshot(tmp_path).items() if before.get(k) != v}
        assert not [name for name in changed if "/owner/" not in name]  # its driver's beat
    text = told(capsys, world)
    assert "interrupted" in text
    assert f"-m search.run --resume mine --storage {tmp_path}" in text
    with world:
        world.end(0.9)
        world.end(0.9, "FAIL", reason="NonFiniteError: loss", details="Traceback\nlast line\n")
        world.end(0.7)
    found = as_json(capsys, world)
    assert found["trials"] == {"done": 4, "asked": 4, "COMPLETE": 3, "PRUNED": 0, "FAIL": 1}
    assert found["best"] == {"trial": 1, "value": 0.9, "accuracy": 0.9}
    assert found["state"] == "interrupted"  # it has not been judged
    text = told(capsys, world, "--errors")
    assert "Trial 2: NonFiniteError: loss" in text
    assert "    last line" in text
    (error,) = as_json(capsys, world, "--errors")["errors"]
    assert (error["number"], error["details"]) == (2, "Traceback\nlast line\n")


def judge(folder: Path, winner: int) -> None:
    """As the end of a sweep does it, without the tests on images."""
    scores = tuple(
        Score(label, (0.5,), "digits", 16, "digits", "test", 10) for label in get_args(Label)
    )
    found = Evaluation(winner, 0.8, (2,), "few-shot", scores)
    (folder / "evaluation.json").write_text(json.dumps(asdict(found)))


def test_an_interrupted_extension_is_not_finished(plan: Plan, tmp_path: Path) -> None:
    def state() -> tuple[str, bool]:
        found = read_standing("mine", str(tmp_path))
        return found.state, found.judged is not None

    with World(plan, str(tmp_path)) as world:
        for value in (0.8, 0.7, 0.6, 0.5):
            world.end(value)
    judge(tmp_path / "mine", 0)
    assert state() == ("finished", True)
    record = json.loads((tmp_path / "mine/sweep.json").read_text())
    record["config"]["trials"] = 6
    (tmp_path / "mine/sweep.json").write_text(json.dumps(record))
    assert state() == ("interrupted", True)
    limited = record | {"config": record["config"] | {"time_budget": 60.0}}
    (tmp_path / "mine/sweep.json").write_text(json.dumps(limited))
    assert state() == ("finished", True)  # as many as its time allowed
    with World(plan, str(tmp_path)) as world:
        world.end(0.9)
    assert state() == ("interrupted", False)  # the figures are those of the former winner


def test_an_evaluation_that_cannot_be_read_is_not_none(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with World(plan, str(tmp_path)) as world:
        world.end(0.8)
    assert "not judged yet" in told(capsys, world)
    world.sweep.write(EVALUATION, b'{"winner": 0}')
    assert "judged, but evaluation.json cannot be read" in told(capsys, world)


def test_what_is_said_is_no_markup(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with World(plan, str(tmp_path)) as world:
        world.end(0.5, "FAIL", reason=f"DataError: {MARKUP}", details=f"in {MARKUP}")
    text = told(capsys, world, "--errors")
    assert text.count(MARKUP) == 2


@pytest.mark.parametrize("width", [30, 60, 80, 160])
def test_a_narrow_terminal_breaks_no_name(plan: Plan, tmp_path: Path, width: int) -> None:
    with World(plan, str(tmp_path)) as world:
        world.end(0.8)
    name = "taskres-digits-tiny-2shot-14669b"
    found = replace(read_standing("mine", world.storage), name=name)
    console = Console(width=width)
    with console.capture() as capture:
        console.print(list_module.sweeps_table([found, replace(found, name="b")], width))
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    assert (name in lines[1]) == (width >= 60)  # if there is room for it
    assert ("digits," in capture.get()) == (width == 160)
    assert "interrupted" in lines[1]
    assert ("80.0 %" in lines[1]) == (width >= 80)


def test_every_sweep_is_a_row(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with World(plan, str(tmp_path)) as world:
        world.end(0.8)
    for name in ("older", "torn", "lost", "half", "begun"):
        shutil.copytree(tmp_path / "mine", tmp_path / name)
    record = json.loads((tmp_path / "older/sweep.json").read_text())
    (tmp_path / "older/sweep.json").write_text(json.dumps(record | {"format": 1}))
    (tmp_path / "torn/sweep.json").write_text('{"format": 3, "id"')
    (tmp_path / "lost/sweep.json").unlink()
    (tmp_path / "half/trials/000000/result.json").write_text("{")
    shutil.rmtree(tmp_path / "begun/trials")
    (tmp_path / "mlartifacts").mkdir()
    assert list_module.main(["--storage", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "mlartifacts" not in out
    assert "interrupted" in rows["mine"]
    assert "1 of 4" in rows["mine"]
    assert "80.0 %" in rows["mine"]
    assert "never begun" in rows["begun"]
    for name in ("older", "torn", "lost", "half"):
        assert "unreadable" in next(x for x in out.splitlines() if x.startswith(f"{name} "))
        assert rows[f"{name}:"]  # the reason
    assert "'format' is 1" in rows["older:"]
    assert list_module.main(["--storage", str(tmp_path), "--json"]) == 0
    found = {s["name"]: s for s in json.loads(capsys.readouterr().out)["sweeps"]}
    assert found["mine"]["best"] == {"trial": 0, "value": 0.8, "accuracy": 0.8}
    assert found["older"]["state"] == "unreadable"
    assert "this version reads" in found["older"]["trouble"]
    for name in ("older", "torn", "half"):
        assert status.main([name, "--storage", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("command", ["status mine", "list"])
def test_reading_a_sweep_loads_nothing_heavy(command: str, plan: Plan, tmp_path: Path) -> None:
    with World(plan, str(tmp_path)) as world:
        world.end(0.8)
        world.ledger.ask()
    module, *names = command.split()
    program = f"""
import sys
from search.{module} import main
assert main([*{names}, "--storage", {str(tmp_path)!r}]) == 0
heavy = {{"torch", "ray", "optuna", "mlflow", "pandas", "numpy", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 4" in done.stdout


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["nobody", "--storage", str(tmp_path)]) == 2
    assert "There is no sweep 'nobody'" in capsys.readouterr().err
    assert list_module.main(["--storage", str(tmp_path / "none")]) == 0
    assert "There is no sweep in" in capsys.readouterr().out
    assert list_module.main(["--storage", "s4://x"]) == 2
    assert capsys.readouterr().err.startswith("error: The storage must be readable")
    assert status.main([]) == 2
    assert "NAME" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_runs_that_mlflow_lacks(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with World(plan, str(tmp_path)) as world:
        for value in (0.8, 0.7, 0.6):
            world.end(value)
        found = read_standing("mine", world.storage)
        assert found.config is not None
        assert found.results is not None
        uri = load_details(found).tracking_uri
        marks = open_marks(uri, found.config, found.id, world.sweep)
        marks.add(0, Mark(found.results[0].ended))
        marks.add(1, Mark(found.results[1].ended, "no"))
        assert marks.undelivered(found.results) == [SWEEP_RUN, 2]
        assert load_details(found).waiting == 1  # while it runs, its own run is not over
    text = told(capsys, world)
    assert "2 runs to be sent, 1 refused" in text
    assert f"-m search.sync mine --storage {tmp_path}" in text


def test_the_words_for_times() -> None:
    assert [duration(s) for s in (0, 119, 120, 7199, 7200, 200_000)] == [
        *("0 s", "119 s", "2 min", "120 min", "2 h", "2 d"),
    ]
    assert ago(None) == "-"
    assert ago(time.time() - 300) == "5 min"


def test_in_a_bucket(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with s3_server(tmp_path) as server:
        with World(plan, server.location("sweeps")) as world:
            world.end(0.8)
            world.ledger.ask()
            before = world.sweep.files()
            found = as_json(capsys, world)
            assert (found["state"], len(found["unfinished"])) == ("running", 1)
            assert world.sweep.files() == before
            world.end(0.9)
        assert list_module.main(["--storage", world.storage, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["sweeps"]
        assert row["trials"]["done"] == 2
        assert row["best"] == {"trial": 2, "value": 0.9, "accuracy": 0.9}


def test_one_unreadable_sweep_does_not_hide_the_others(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with World(plan, str(tmp_path)) as world:
        world.end(0.8)
    for name in ("first", "last"):
        shutil.copytree(tmp_path / "mine", tmp_path / name)
    (tmp_path / "first" / "sweep.json").unlink()
    (tmp_path / "first" / "sweep.json").mkdir()  # reading it fails, for root too
    (tmp_path / "last" / "trials" / "000000" / "result.json").write_text("{")
    assert list_module.main(["--storage", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    states = dict(re.findall(r"^(first|mine|last) .*?(unreadable|interrupted)", out, re.MULTILINE))
    assert states == {"first": "unreadable", "mine": "interrupted", "last": "unreadable"}, out
    for name in ("first", "last"):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name}: ")]
        assert "must be" in line
