"""`--init-from`: which sweeps can be started from, and what is taken from their folders."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search.core.init_from import Start
from search.core.results import Result, commit, trial_folder
from search.core.sweep_folder import SweepFolder
from search.driver import preflight as preflight_module
from search.driver.backbone_probe import BackboneProbe
from search.driver.preflight import Plan, preflight
from search.evaluation.record import EVALUATION, Evaluation, Score
from search.evaluation.winner import read_start, share_start
from search.options import configure
from search.run import main
from tests.trainables.trials import mask_trial, residual_trial
from trainables.core.storage import LocalStorage
from trainables.core.tensor_file import read_checked, write_tensors
from trainables.encoded_task import EncodedTask
from trainables.fixed import learned
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig

QUIET = ("--tracking-uri", "none")
MASKS = mask_trial(1)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a separate cache, and check the backbone in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        preflight_module, "BackboneProbeProcess", lambda s: nullcontext(BackboneProbe(s))
    )


def result(number: int, value: float, config: TrialConfig) -> Result:
    return Result(
        *(number, "COMPLETE", value, (value,), {"val/accuracy": value}, {}, {}, {}),
        *(config.to_dict(), 1.0, 1.0, 2.0, "here"),
    )


def finished(
    name: str = "masks",
    config: TrialConfig = MASKS,
    space: str = "rmt",
    winner: int = 1,
    judged: bool = True,
    options: tuple[str, ...] = ("--shots", "2"),
) -> Path:
    """A sweep's folder as its end leaves it; trial 1 is the winner."""
    plan = preflight(configure(["--name", name, "--space", space, *options, *QUIET]))
    sweep = LocalStorage(Path("sweeps").absolute() / name)
    SweepFolder(sweep).write_record(plan.record())
    commit(sweep, result(0, 0.25, replace(config, preset="paper")), [])
    commit(sweep, result(1, 0.5, config), [])
    if judged:
        score = Score("winner", (0.5,), "digits", 2, "digits", "test", 10)
        found = Evaluation(winner, 0.5, (2,), "few-shot", (score,))
        sweep.write(EVALUATION, json.dumps(asdict(found)).encode())
        sweep.write("winner/config.json", json.dumps(config.to_dict()).encode())
    return sweep.root


def started(*options: str) -> Plan:
    return preflight(configure(["--space", "taskres", "--init-from", "masks", *options, *QUIET]))


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The error lines of a command that must not have begun any work."""
    before = sorted(p for p in Path("sweeps").rglob("*"))
    assert main(["--space", "taskres", *options, *QUIET]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(p for p in Path("sweeps").rglob("*")) == before
    return captured.err.splitlines()


# --- the record ----------------------------------------------------------------------------------


def test_every_trial_begins_with_the_winner() -> None:
    root = finished()
    plan = started("--seed", "7")
    (before, after) = plan.space.paper.seeded(plan.config.seed).stages
    assert before == replace(MASKS, fixed=True)
    assert (after.method, after.seed, after.preset) == ("taskres", 7, "paper")
    assert plan.config.space == "taskres"
    assert plan.config.task.shots == (2,)  # the task is that sweep's
    assert plan.config.task.seeds == (1, 2, 3)  # and the draws are as the space wants them
    start = plan.config.init_from
    assert start is not None
    assert (start.trial, start.location) == (1, str(root))


def test_by_name_by_path_by_uri() -> None:
    root = finished()
    found = [read_start(where, "sweeps") for where in ("masks", str(root), f"file://{root}")]
    assert found[0] == found[1] == found[2]
    assert read_start("./sweeps/masks", "elsewhere") == found[0]


def test_json_and_back() -> None:
    finished()
    config = started().config
    plain = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(plain) == config
    assert isinstance(type(config).from_dict(plain).init_from, Start)


def test_no_password_is_kept() -> None:
    finished()
    config = started().config
    assert config.init_from is not None
    secret = replace(config.init_from, location="s3://key:secret@bucket/sweeps/masks")
    public = replace(config, init_from=secret).public()
    assert "secret" not in json.dumps(public.to_dict())
    assert public.identity() == config.identity()


def test_the_start_is_part_of_what_a_sweep_is(capsys: pytest.CaptureFixture[str]) -> None:
    finished()
    finished("others", config=mask_trial(1, leak=0.0))
    with_start = started()
    assert configure(["--space", "taskres", "--shots", "2"]).identity().keys() < (
        with_start.config.identity().keys()
    )
    others = configure(["--space", "taskres", "--init-from", "others"])
    assert others.sweep_name != with_start.config.sweep_name
    sweep = LocalStorage(Path("sweeps/residual").absolute())
    plan = started("--name", "residual")
    SweepFolder(sweep).write_record(plan.record())
    assert configure(["--resume", "residual"]).init_from == plan.config.init_from
    assert (
        configure(["--resume", "residual", "--init-from", "masks"]).init_from
        == plan.config.init_from
    )
    for how in ("--resume", "--name"):
        lines = refused(capsys, how, "residual", "--init-from", "others")
        assert any("the sweep has" in line and ", got " in line for line in lines)
    lines = refused(capsys, "--name", "residual", "--shots", "2")
    assert any("the sweep has" in line for line in lines)


def test_a_copy_of_the_folder_is_the_same_start() -> None:
    root = finished()
    first = started().config
    root.rename("sweeps/moved")
    second = configure(["--space", "taskres", "--init-from", "moved"])
    assert first.identity() == second.identity()


# --- what is refused -----------------------------------------------------------------------------


def test_an_unknown_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    finished()
    (line,) = refused(capsys, "--init-from", "mask")
    assert "There is no sweep 'mask'" in line
    assert "There are: masks" in line


@pytest.mark.parametrize("how", [{"judged": False}, {"winner": 0}])
def test_an_unfinished_sweep(how: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Also one with a better trial than the one that was judged."""
    finished(**how)
    (line,) = refused(capsys, "--init-from", "masks")
    assert "is not finished: finish it with --resume masks" in line


def test_a_winner_that_does_not_change_the_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    finished(config=residual_trial(1), space="taskres")
    (line,) = refused(capsys, "--init-from", "masks")
    for words in ("change the backbone", "rmt", "searched taskres", "belongs to the classes"):
        assert words in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shots", "4"), "has shots 2, got 4"),
        (("--dataset", "digits-rotated"), "has datasets digits, got digits-rotated"),
        (("--protocol", "base-to-new"), "has protocol few-shot, got base-to-new"),
        (("--per-task",), "--per-task cannot be used with --init-from"),
    ],
)
def test_another_task(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished()
    lines = refused(capsys, "--init-from", "masks", *options)
    assert any(words in line for line in lines)


def test_unreadable_images_may_be_left_out_of_what_comes_after() -> None:
    finished()
    assert started("--skip-unreadable").config.task.skip_unreadable


@pytest.mark.parametrize("what", ["backbone", "train", "val"])
def test_other_weights_or_data_under_the_same_name(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = finished()
    record = json.loads((root / "sweep.json").read_text())
    record["fingerprints"][what] = "0" * 64
    (root / "sweep.json").write_text(json.dumps(record))
    (line,) = refused(capsys, "--init-from", "masks")
    assert f"was searched with another {what} (000000000000, now" in line


# --- what was trained already --------------------------------------------------------------------


@pytest.fixture
def bench() -> EncodedTask:
    return configure_bench()


def configure_bench(stages: str = "") -> EncodedTask:
    source = configure(["--shots", "2"]).task.source("")
    return EncodedTask("tiny", "cpu", source, stages=stages)


def trained(root: Path, bench: EncodedTask) -> dict[int, dict[str, torch.Tensor]]:
    """Leave artifacts as a sweep does: of the search's draw 1, and of the evaluation's draw 2."""
    found = {}
    names = {1: f"{trial_folder(1)}/artifact.safetensors", 2: "winner/artifact-seed2.safetensors"}
    for seed, name in names.items():
        trainer = Trainer(MASKS, bench, Episode("digits", 2, seed))
        trainer.run_epoch()
        artifact = trainer.artifact()
        write_tensors(LocalStorage(root), name, *artifact)
        found[seed] = artifact[0]
    return found


def share_of(plan: Plan, sweep: LocalStorage) -> str:
    return share_start(plan.config, plan.source, plan.fingerprints["backbone"], sweep)


def test_what_was_trained_is_not_trained_again(
    bench: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = trained(finished(), bench)
    plan = started("--seeds", "1", "--eval-seeds", "2")
    sweep = LocalStorage(Path("sweeps/residual").absolute())
    location = share_of(plan, sweep)
    files = sorted(Path(location).iterdir())
    assert len(files) == 2
    assert all(read_checked(LocalStorage(f.parent), f.name) for f in files)
    before = {f: f.stat().st_mtime_ns for f in files}
    assert share_of(plan, sweep) == location
    assert {f: f.stat().st_mtime_ns for f in files} == before

    def refuse(_: Trainer) -> dict[str, float]:
        raise AssertionError("it is trained again")

    monkeypatch.setattr(Trainer, "run_epoch", refuse)
    assert plan.config.init_from is not None
    worker = configure_bench(location)
    for seed in (1, 2):
        (tensors, _), _ = learned(plan.config.init_from.stage, worker, Episode("digits", 2, seed))
        assert all(torch.equal(tensors[n], t) for n, t in artifacts[seed].items())
    with pytest.raises(AssertionError, match="trained again"):
        learned(plan.config.init_from.stage, worker, Episode("digits", 2, 3))


@pytest.mark.parametrize("change", ["another winner", "fewer draws", "damage", "gone", "away"])
def test_what_is_not_exactly_that_is_not_taken(change: str, bench: EncodedTask) -> None:
    """The evaluation may have been repeated since, with leftovers of the previous one."""
    root = finished()
    trained(root, bench)
    plan = started("--seeds", "1", "--eval-seeds", "2")
    match change:
        case "another winner":
            other = mask_trial(1, leak=0.0).to_dict()
            (root / "winner/config.json").write_text(json.dumps(other))
        case "fewer draws":
            plain = json.loads((root / EVALUATION).read_text())
            (root / EVALUATION).write_text(json.dumps(plain | {"seeds": [9]}))
        case "damage":
            (root / "winner/artifact-seed2.safetensors").write_bytes(b"x" * 20)
        case "gone":
            root.rename("sweeps/away")
        case "away":
            start = replace(plan.config.init_from, location="s4://bucket/masks")  # type: ignore[type-var]
            plan = replace(plan, config=replace(plan.config, init_from=start))
    location = share_of(plan, LocalStorage(Path("sweeps/residual").absolute()))
    kept = list(Path(location).glob("*")) if Path(location).exists() else []
    assert len(kept) == (0 if change in ("gone", "away") else 1)


def test_without_a_start_there_is_nothing_to_share() -> None:
    plan = preflight(configure(["--space", "rmt+taskres", "--shots", "2", *QUIET]))
    assert share_of(plan, LocalStorage(Path("sweeps/x").absolute())) == ""
    assert not Path("sweeps/x").exists()


def test_a_start_of_two_stages() -> None:
    """Both are fixed; their artifact is one file of two stages, which is trained again."""
    chain = mask_trial(1, masked="mlp").after(MASKS)
    finished(config=chain, space="rmt+rmt", options=("--shots", "2", "--trials", "2"))
    plan = started()
    assert [s.fixed for s in plan.space.paper.stages] == [True, True, False]
    assert plan.space.paper.problems() == []
    assert dataclasses.is_dataclass(plan.config.init_from)
    sweep = LocalStorage(Path("sweeps/residual").absolute())
    assert share_of(plan, sweep) == str(sweep.root / "stages")
