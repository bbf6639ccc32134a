"""A whole trial in parts: what it reports, and that it survives any interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tests.trainables.trials import TASK, TWO_SEEDS, mask_trial, residual_trial, zero_shot_trial
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage, StorageError
from trainables.encoded_task import EncodedTask
from trainables.methods.base import BuildContext, Schedule
from trainables.methods.registry import METHODS
from trainables.report import REPORTS_PER_TRIAL, Report
from trainables.trainer import NonFiniteError, Trainer
from trainables.trial import Episode, EpisodeSettings, TaskSpec, TrialConfig
from trainables.trial_run import TrialRun

Content = tuple[dict[str, Any], dict[str, torch.Tensor]]


def to_the_end(run: TrialRun) -> list[Report]:
    reports = []
    while not run.finished:
        reports.append(run.advance())
    return reports


def at(path: Path) -> tuple[LocalStorage, str]:
    """A file as `save` and `load` want it."""
    return LocalStorage(path.parent), path.name


def content(run: TrialRun, path: Path) -> Content:
    """What a checkpoint holds, without the times of day."""
    run.save(*at(path))
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["run"])
        tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    for row in state["rows"]:
        del row["time"]
    return state, tensors


def equal(first: Content, second: Content) -> bool:
    """Bit for bit."""
    return (
        first[0] == second[0]
        and list(first[1]) == list(second[1])
        and all(map(torch.equal, first[1].values(), second[1].values()))
    )


# --- settings per episode ------------------------------------------------------------------------

TWO_SETS = TaskSpec(("digits", "digits-rotated"), "tiny", shots=(1, 2), seeds=(1,))


def paper_trial(**epochs: int) -> TrialConfig:
    """Other settings for each data set and number of shots; `epochs` by data set."""
    general = residual_trial(4)
    each = tuple(
        EpisodeSettings(
            dataset,
            shots,
            replace(general.method_config, alpha=0.1 * shots),  # type: ignore[call-arg]
            replace(general.optim, lr=1e-3 * shots, epochs=epochs[dataset.replace("-", "_")]),
            1.0,
        )
        for dataset in TWO_SETS.datasets
        for shots in TWO_SETS.shots
    )
    return replace(general, preset="paper", per_episode=each)


@pytest.mark.parametrize("in_sequence", [False, True])
@pytest.mark.parametrize(("one", "other"), [(3, 3), (3, 7), (20, 10), (9, 8)])
def test_each_episode_is_trained_with_its_own_settings(
    one: int, other: int, in_sequence: bool, encoded_task: EncodedTask
) -> None:
    config = paper_trial(digits=one, digits_rotated=other)
    run = TrialRun(config, TWO_SETS, encoded_task, in_sequence)
    reports = to_the_end(run)
    assert len(reports) == run.steps <= REPORTS_PER_TRIAL
    epochs = [row["epoch"] for report in reports for row in report.rows]
    total = 2 * (one + other) if in_sequence else min(one, other)
    assert epochs == list(range(1, total + 1))
    for training in run.episodes:
        own = config.for_episode(training.episode)
        assert (own.optim.epochs, training.epoch) == (training.epochs, training.epochs)
        alone = TrialRun(own, replace(TWO_SETS, **_only(training.episode)), encoded_task)
        to_the_end(alone)
        assert equal_states(alone.episodes[0].state()[0], training.state()[0])


def _only(episode: Episode) -> dict[str, Any]:
    return {"datasets": (episode.dataset,), "shots": (episode.shots,), "seeds": (episode.seed,)}


def equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_settings_per_episode_survive_an_interruption(
    encoded_task: EncodedTask, tmp_path: Path
) -> None:
    config = paper_trial(digits=3, digits_rotated=7)
    straight, broken = (TrialRun(config, TWO_SETS, encoded_task) for _ in range(2))
    to_the_end(straight)
    broken.advance()
    broken.save(*at(tmp_path / "c.safetensors"))
    again = TrialRun(
        TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))), TWO_SETS, encoded_task
    )
    assert again.load(*at(tmp_path / "c.safetensors"))
    to_the_end(again)
    assert equal(content(straight, tmp_path / "a"), content(again, tmp_path / "b"))


def test_stages_keep_step_with_each_other(encoded_task: EncodedTask) -> None:
    """Stages that differ in epochs: every report is of the same stage in all episodes."""
    first = replace(
        residual_trial(2),
        method="enhanced-base",
        method_config=METHODS["enhanced-base"].Config(),
        per_episode=tuple(
            EpisodeSettings(dataset, shots, METHODS["enhanced-base"].Config(), optim, 1.0)
            for dataset, optim in (
                ("digits", replace(residual_trial().optim, epochs=2)),
                ("digits-rotated", replace(residual_trial().optim, epochs=5)),
            )
            for shots in TWO_SETS.shots
        ),
    )
    run = TrialRun(paper_trial(digits=6, digits_rotated=3).after(first), TWO_SETS, encoded_task)
    while not run.finished:
        run.advance()
        assert len({type(training.method) for training in run.episodes}) == 1
    assert [training.epoch for training in run.episodes] == [8, 8, 8, 8]


# --- reports -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "epochs",
    [
        1,
        2,
        REPORTS_PER_TRIAL - 1,
        REPORTS_PER_TRIAL,
        REPORTS_PER_TRIAL + 1,
        19,
        20,
        25,
        4 * REPORTS_PER_TRIAL,
    ],
)
def test_a_trial_reports_no_more_often_than_it_has_parts(
    epochs: int, encoded_task: EncodedTask
) -> None:
    run = TrialRun(residual_trial(epochs, batch_size=20), TASK, encoded_task)
    start = time.time()
    steps = run.steps
    reports = to_the_end(run)
    assert len(reports) == steps <= REPORTS_PER_TRIAL
    assert [report.step for report in reports] == list(range(1, steps + 1))
    assert [report.finished for report in reports] == [False] * (steps - 1) + [True]
    rows = [row for report in reports for row in report.rows]
    assert [row["epoch"] for row in rows] == [float(e) for e in range(1, epochs + 1)]
    sizes = {len(report.rows) for report in reports[:-1]}
    assert sizes <= {math.ceil(epochs / REPORTS_PER_TRIAL)}  # equal parts, but for the last
    assert 1 <= len(reports[-1].rows) <= math.ceil(epochs / REPORTS_PER_TRIAL)
    times = [row["time"] for row in rows]
    assert start <= min(times)
    assert times == sorted(times)
    for index, report in enumerate(reports):
        assert report.values == tuple(r.rows[-1]["val/accuracy"] for r in reports[: index + 1])
        assert report.metrics == {
            name: value for name, value in report.rows[-1].items() if name not in ("epoch", "time")
        }


def test_every_epoch_has_a_row_of_the_same_metrics(encoded_task: EncodedTask) -> None:
    rows = [row for r in to_the_end(TrialRun(mask_trial(), TASK, encoded_task)) for row in r.rows]
    assert len({frozenset(row) for row in rows}) == 1
    assert {"train/loss", "train/kl", "train/lr", "val/accuracy", "val/loss"} < set(rows[0])
    assert {"mask/flipped", "epoch", "time"} < set(rows[0])


def test_side_by_side_reports_the_mean_over_seeds(encoded_task: EncodedTask) -> None:
    trial = residual_trial(3)
    run = TrialRun(trial, TWO_SEEDS, encoded_task)
    alone = [Trainer(trial, encoded_task, Episode("digits", 1, seed)) for seed in TWO_SEEDS.seeds]
    for report in to_the_end(run):
        first, second = (episode.run_epoch() for episode in alone)
        assert first["val/accuracy"] != second["val/accuracy"]
        for name, value in report.metrics.items():
            assert value == (first[name] + second[name]) / 2, name
        assert report.values[-1] == report.metrics["val/accuracy"]


def test_in_sequence_a_part_is_a_seed(encoded_task: EncodedTask) -> None:
    trial, task = residual_trial(3), replace(TWO_SEEDS, seeds=(1, 4, 7))
    run = TrialRun(trial, task, encoded_task, in_sequence=True)
    assert run.steps == 3
    expected = []
    for index, report in enumerate(to_the_end(run)):
        alone = Trainer(trial, encoded_task, Episode("digits", 1, task.seeds[index]))
        rows = [alone.run_epoch() for _ in range(3)]
        expected.append(rows[-1]["val/accuracy"])
        assert report.values == tuple(expected)  # each seed's own, for a paired test
        assert report.metrics["val/accuracy"] == pytest.approx(fmean(expected), abs=1e-15)
        assert report.metrics["val/loss"] == rows[-1]["val/loss"]
        epochs = [row["epoch"] for row in report.rows]
        assert epochs == [3.0 * index + e for e in (1, 2, 3)]
        for told, row in zip(report.rows, rows, strict=True):
            assert row.items() <= told.items()
    assert len(set(expected)) > 1


def test_one_seed_in_sequence_ends_as_side_by_side(encoded_task: EncodedTask) -> None:
    in_sequence = to_the_end(TrialRun(mask_trial(), TASK, encoded_task, in_sequence=True))
    side_by_side = to_the_end(TrialRun(mask_trial(), TASK, encoded_task))
    assert len(in_sequence) == 1
    assert in_sequence[0].metrics == side_by_side[-1].metrics


@pytest.mark.parametrize("in_sequence", [False, True])
def test_a_method_with_nothing_to_train(
    in_sequence: bool, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    run = TrialRun(zero_shot_trial(), TWO_SEEDS, encoded_task, in_sequence)
    reports = to_the_end(run)
    assert len(reports) == (2 if in_sequence else 1)
    episodes = [Trainer(zero_shot_trial(), encoded_task, episode) for episode in TWO_SEEDS.episodes]
    mean = sum(episode.validate()["val/accuracy"] for episode in episodes) / 2
    assert reports[-1].metrics["val/accuracy"] == mean
    assert reports[-1].finished
    run.save(*at(tmp_path / "checkpoint"))
    again = TrialRun(zero_shot_trial(), TWO_SEEDS, encoded_task, in_sequence)
    assert again.load(*at(tmp_path / "checkpoint"))
    assert again.finished
    assert again.advance().values == reports[-1].values
    assert len(run.save_artifacts(LocalStorage(tmp_path))) == 2


def test_a_finished_trial_repeats_its_last_word(encoded_task: EncodedTask) -> None:
    run = TrialRun(residual_trial(2), TASK, encoded_task)
    last = to_the_end(run)[-1]
    again = run.advance()
    assert again == replace(last, rows=())
    assert run.step == 2


def idle_trial(epochs: int = 3, **optim: Any) -> TrialConfig:
    """Its scores cannot reach the threshold."""
    trial = mask_trial(epochs)
    return replace(trial, optim=replace(trial.optim, lr=1e-6, **optim))


@pytest.mark.parametrize("in_sequence", [False, True])
def test_a_trial_that_cannot_flip_a_bit_is_not_trained(
    in_sequence: bool, encoded_task: EncodedTask
) -> None:
    run = TrialRun(idle_trial(), TWO_SEEDS, encoded_task, in_sequence)
    last = to_the_end(run)[-1]
    assert last.finished
    assert not last.trained
    zero_shot = TrialRun(zero_shot_trial(), TWO_SEEDS, encoded_task).advance()
    assert last.metrics["val/accuracy"] == zero_shot.metrics["val/accuracy"]
    assert last.metrics["mask/flipped"] == 0
    assert not any(name.startswith("train/") for name in last.metrics)
    assert all(episode.epoch == 3 for episode in run.episodes)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_only_the_steps_of_adam_are_bounded(optimiser: str, encoded_task: EncodedTask) -> None:
    report = TrialRun(idle_trial(1, optimiser=optimiser), TASK, encoded_task).advance()
    assert report.trained
    assert "train/loss" in report.metrics


def test_a_trial_of_which_one_draw_trains_is_trained(encoded_task: EncodedTask) -> None:
    """With one batch size for both numbers of shots, only the larger has enough steps."""
    trial = mask_trial(2)
    trial = replace(trial, optim=replace(trial.optim, lr=2e-3, batch_size=10))
    run = TrialRun(trial, replace(TASK, shots=(1, 4)), encoded_task)
    assert [episode.is_idle for episode in run.episodes] == [True, False]
    report = to_the_end(run)[-1]
    assert report.trained
    assert report.metrics["mask/flipped"] > 0


def test_forecasts_are_means_and_warnings_speak_once(encoded_task: EncodedTask) -> None:
    run = TrialRun(idle_trial(1), TWO_SEEDS, encoded_task)
    assert run.forecast() == pytest.approx(run.episodes[0].forecast())
    (warning,) = run.warnings()
    assert "No mask bit can flip" in warning
    assert TrialRun(residual_trial(), TASK, encoded_task).forecast() == {}
    assert TrialRun(residual_trial(), TASK, encoded_task).warnings() == []


def test_a_diverging_trial_raises(encoded_task: EncodedTask) -> None:
    with pytest.raises(NonFiniteError):
        TrialRun(residual_trial(lr=1e30), TASK, encoded_task).advance()


# --- interruptions -------------------------------------------------------------------------------

RUNS: dict[str, tuple[TrialConfig, TaskSpec, bool]] = {
    "taskres": (residual_trial(4), TASK, False),
    "taskres-seeds": (residual_trial(4), TWO_SEEDS, False),
    "taskres-sequence": (residual_trial(3), TWO_SEEDS, True),
    "taskres-many-epochs": (residual_trial(25), TASK, False),
    "rmt": (mask_trial(3), TASK, False),
    "rmt-idle": (idle_trial(), TWO_SEEDS, False),
    "rmt-dynamic": (mask_trial(3, masked="dynamic"), TASK, False),
    "rmt-sequence": (mask_trial(2, masked="dynamic"), TWO_SEEDS, True),
}


@pytest.mark.parametrize(("trial", "task", "in_sequence"), RUNS.values(), ids=RUNS)
def test_interrupted_after_every_part(
    trial: TrialConfig, task: TaskSpec, in_sequence: bool, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    """A new process for every part ends where one process ends: state, values and rows."""
    whole = TrialRun(trial, task, encoded_task, in_sequence)
    expected = to_the_end(whole)
    path = tmp_path / "checkpoint"
    rows: list[dict[str, float]] = []
    for step in range(whole.steps):
        run = TrialRun(trial, task, encoded_task, in_sequence)
        assert run.load(*at(path)) is (step > 0)
        assert run.step == step
        report = run.advance()
        run.save(*at(path))
        assert report.values == expected[step].values
        assert report.metrics == expected[step].metrics
        assert list(report.rows[: len(rows)]) == rows  # told again, times included
        assert len(report.rows) > len(rows)
        rows = list(report.rows)
    assert equal(content(run, path), content(whole, tmp_path / "whole"))


def test_a_finished_checkpoint_tells_all_rows_again_once(
    encoded_task: EncodedTask, tmp_path: Path
) -> None:
    run = TrialRun(residual_trial(3), TASK, encoded_task)
    rows = [row for report in to_the_end(run) for row in report.rows]
    run.save(*at(tmp_path / "checkpoint"))
    again = TrialRun(residual_trial(3), TASK, encoded_task)
    assert again.load(*at(tmp_path / "checkpoint"))
    assert list(again.advance().rows) == rows
    assert again.advance().rows == ()


def test_a_checkpoint_from_before_the_first_part(encoded_task: EncodedTask, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    TrialRun(mask_trial(1), TASK, encoded_task).save(*at(path))
    run = TrialRun(mask_trial(1), TASK, encoded_task)
    assert run.load(*at(path))
    assert run.advance().metrics == TrialRun(mask_trial(1), TASK, encoded_task).advance().metrics


def test_rewinding(encoded_task: EncodedTask, tmp_path: Path) -> None:
    """A run that has gone on forgets what came after the checkpoint."""
    run = TrialRun(residual_trial(4), TASK, encoded_task)
    first = [run.advance() for _ in range(2)]
    run.save(*at(tmp_path / "checkpoint"))
    once = to_the_end(run)
    assert run.load(*at(tmp_path / "checkpoint"))
    again = to_the_end(run)
    assert [report.values for report in again] == [report.values for report in once]
    assert [report.metrics for report in again] == [report.metrics for report in once]
    assert again[0].rows[:2] == (*first[0].rows, *first[1].rows)


def test_saving_leaves_one_whole_file_or_the_old_one(
    encoded_task: EncodedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    run = TrialRun(residual_trial(3), TASK, encoded_task)
    run.advance()
    run.save(*at(path))
    run.save(*at(path))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    before = path.read_bytes()

    def full_disk(tensors: object, name: str, metadata: object) -> None:
        Path(name).write_bytes(b"half a file")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("trainables.core.tensor_file.save_file", full_disk)
    run.advance()
    with pytest.raises(StorageError, match="No space left"):
        run.save(*at(path))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def saved(encoded_task: EncodedTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint after one part."""
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    run = TrialRun(residual_trial(3), TASK, encoded_task)
    run.advance()
    run.save(*at(path))
    return path


def assert_ignored(path: Path, encoded_task: EncodedTask, trial: TrialConfig | None = None) -> None:
    """Not loaded, and the trial starts from scratch as if nothing had been there."""
    trial = trial or residual_trial(3)
    run = TrialRun(trial, TASK, encoded_task)
    assert run.load(*at(path)) is False
    assert run.step == 0
    assert run.advance().metrics == TrialRun(trial, TASK, encoded_task).advance().metrics


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None
)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_noticed(
    data: st.DataObject, saved: Path, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    good = saved.read_bytes()
    where = data.draw(st.integers(0, len(good) - 1))
    damaged = bytearray(good)
    damaged[where] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    run = TrialRun(residual_trial(3), TASK, encoded_task)
    before = {key: tensor.clone() for key, tensor in run.episodes[0].state()[0].items()}
    loaded = run.load(*at(path))
    if loaded:  # the bit meant nothing: what was read is what was saved
        intact = TrialRun(residual_trial(3), TASK, encoded_task)
        assert intact.load(*at(saved))
        assert equal(content(run, tmp_path / "a"), content(intact, tmp_path / "b"))
        assert run.advance().values == intact.advance().values
    else:
        assert run.step == 0
        after = run.episodes[0].state()[0]
        assert list(after) == list(before)
        assert all(map(torch.equal, after.values(), before.values()))


def test_bits_of_tensors_and_of_values_count(
    saved: Path, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    """Some places where a flipped bit leaves a file that safetensors reads without complaint."""
    good = saved.read_bytes()
    places = [len(good) - 1, len(good) // 2, good.index(b"val/accuracy") + 17]
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1
        path = tmp_path / f"damaged-{place}"
        path.write_bytes(damaged)
        load_file(path)  # readable
        assert_ignored(path, encoded_task)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_ignored(
    share: float, saved: Path, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    good = saved.read_bytes()
    (tmp_path / "short").write_bytes(good[: int(len(good) * share)])
    assert_ignored(tmp_path / "short", encoded_task)


def rewritten(change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Any:
    """A writer of well-formed files that are not our checkpoints."""

    def write(good: Path, path: Path) -> None:
        with safe_open(good, framework="pt") as file:
            metadata = dict(file.metadata())
        tensors = load_file(good)
        change(tensors, metadata)
        save_file(tensors, path, metadata)

    return write


FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda good, path: None,
    "folder": lambda good, path: path.mkdir(),
    "text": lambda good, path: path.write_text("not a checkpoint"),
    "zeros": lambda good, path: path.write_bytes(bytes(4096)),
    "no metadata": lambda good, path: save_file(load_file(good), path),
    "a tensor less": rewritten(lambda t, m: t.pop("0/method/residual") is None),
    "a tensor more": rewritten(lambda t, m: t.update(extra=torch.zeros(1))),
    "another shape": rewritten(
        lambda t, m: t.update({"0/method/residual": t["0/method/residual"].T.contiguous()})
    ),
    "another type": rewritten(
        lambda t, m: t.update({"0/method/residual": t["0/method/residual"].half()})
    ),
    "two tensors swapped": rewritten(
        lambda t, m: t.update({"0/rng/order": t["0/rng/method"], "0/rng/method": t["0/rng/order"]})
    ),
    "another value": rewritten(
        lambda t, m: m.update(run=m["run"].replace('"step": 1', '"step": 2'))
    ),
    "no run": rewritten(lambda t, m: m.pop("run") is None),
    "no checksum": rewritten(lambda t, m: m.pop("sha256") is None),
    "another config": rewritten(lambda t, m: m.update(config="x")),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_ignored(
    write: Callable[[Path, Path], object], saved: Path, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    write(saved, tmp_path / "checkpoint")
    assert_ignored(tmp_path / "checkpoint", encoded_task)


def test_rewriting_alone_does_no_harm(
    saved: Path, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    """The counter-check of the foreign files."""
    rewritten(lambda t, m: None)(saved, tmp_path / "checkpoint")
    run = TrialRun(residual_trial(3), TASK, encoded_task)
    assert run.load(*at(tmp_path / "checkpoint"))
    assert run.step == 1


OTHERS: dict[str, tuple[TrialConfig, TaskSpec, bool]] = {
    "learning rate": (residual_trial(3, lr=3e-3), TASK, False),
    "epochs": (residual_trial(4), TASK, False),
    "seed": (replace(residual_trial(3), seed=1), TASK, False),
    "method": (zero_shot_trial(), TASK, False),
    "shots": (residual_trial(3), replace(TASK, shots=(1,)), False),
    "draw": (residual_trial(3), replace(TASK, seeds=(2,)), False),
    "more draws": (residual_trial(3), replace(TASK, seeds=(1, 2)), False),
    "data set": (residual_trial(3), replace(TASK, datasets=("digits-rotated",)), False),
    "in sequence": (residual_trial(3), TASK, True),
}


@pytest.mark.parametrize(("trial", "task", "in_sequence"), OTHERS.values(), ids=OTHERS)
def test_another_trials_checkpoint_is_ignored(
    trial: TrialConfig, task: TaskSpec, in_sequence: bool, saved: Path, encoded_task: EncodedTask
) -> None:
    run = TrialRun(trial, task, encoded_task, in_sequence)
    assert run.load(*at(saved)) is False
    assert run.step == 0


# --- what is left --------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", [residual_trial(2), mask_trial(2), zero_shot_trial()])
def test_artifacts_are_named_by_seed_where_there_are_several(
    trial: TrialConfig, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    one, two = TrialRun(trial, TASK, encoded_task), TrialRun(trial, TWO_SEEDS, encoded_task)
    to_the_end(one)
    to_the_end(two)
    folder = LocalStorage(tmp_path)
    assert one.save_artifacts(folder) == ["artifact.safetensors"]
    seeds = ["artifact-seed1.safetensors", "artifact-seed4.safetensors"]
    assert two.save_artifacts(folder) == seeds
    assert folder.files() == [*seeds, "artifact.safetensors"]
    for path, episode in zip((tmp_path / name for name in seeds), two.episodes, strict=True):
        assert path.stat().st_mode & 0o777 == 0o644
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        fresh = METHODS[trial.method].build(
            trial.method_config,
            BuildContext(
                encoded_task.backbone,
                encoded_task.classes("digits", "all", trial.method_config.prompts),
                Schedule(()),
            ),
        )
        fresh.load_artifact(load_file(path), metadata)
        view = episode.val
        every = torch.arange(len(view))
        inputs = (
            view.features()
            if fresh.input_kind == "features"
            else encoded_task.backbone.preprocess.normalise(view.images(every))
        )
        with torch.no_grad():
            assert torch.equal(fresh(inputs), episode.logits(view))


@pytest.mark.parametrize(
    ("method", "fields", "lr", "validation"),
    [("gda", {"alpha": 1e38}, 1e-3, "held-out"), ("tip-adapter-f", {}, 30.0, "folds")],
)
def test_a_validation_that_is_not_finite_ends_the_trial(
    method: str, fields: dict[str, float], lr: float, validation: Any
) -> None:
    """Also of a method in closed form, and of folds."""
    config = METHODS[method].Config(**fields)
    trial = TrialConfig(method, "search", config, OptimConfig(lr=lr, epochs=1, batch_size=32))
    task = replace(TASK, validation=validation)
    run = TrialRun(trial, task, EncodedTask(task.backbone, "cpu", task.source("")))
    with pytest.raises(NonFiniteError, match=r"val/\w+ became (nan|inf)"):
        to_the_end(run)
