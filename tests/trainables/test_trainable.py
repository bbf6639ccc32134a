"""Calls the trainable's methods directly: one warm worker runs one trial after another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainables.trials import TASK, TWO_SEEDS, mask_trial, residual_trial, zero_shot_trial
from trainables.assignment import Assignment, Message
from trainables.encoded_task import EncodedTask
from trainables.methods.taskres import TaskRes
from trainables.parameters import ParameterError
from trainables.predictions import VALIDATION
from trainables.report import CHECKPOINT, METRICS, ZERO_SHOT, Report
from trainables.trainable import FewShotTrainable
from trainables.trainer import Trainer
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import CheckpointError, TrialRun

Job = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _unsealed_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker seals its process; here that is the process of all other tests."""
    monkeypatch.setenv("FEWSHOT_PROCESS_ROLE", "")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Makes what Tune hands to a worker; every trial number has its folder."""

    def make(
        trial: TrialConfig, number: int = 0, task: TaskSpec = TASK, **changes: Any
    ) -> dict[str, Any]:
        assignment = Assignment(
            number=number,
            trial=trial.to_dict(),
            task=task.to_dict(),
            data="",
            folder=str(tmp_path / f"{number:06}"),
            device="cpu",
            threads=1,
            in_sequence=False,
            checkpoint_seconds=0.0,
        )
        travelled = json.loads(json.dumps(asdict(replace(assignment, **changes))))
        return {"assignment": travelled}

    return make


def listen(worker: FewShotTrainable) -> list[Message]:
    """Run a trial to its end; return the messages."""
    messages = []
    while True:
        result = worker.train()
        messages.append(Message.decode(result["message"]))
        assert result["done"] is (messages[-1].outcome != "running")
        if result["done"]:
            return messages


def without_times(message: Message) -> Message:
    assert message.report is not None
    rows = tuple({k: v for k, v in row.items() if k != "time"} for row in message.report.rows)
    return replace(message, seconds=0.0, report=replace(message.report, rows=rows))


REPORT = Report(2, (0.5, 0.1 + 0.2), ({"epoch": 1.0}, {"epoch": 2.0}), False, {"val/loss": 1e-9})


@pytest.mark.parametrize(
    "message",
    [
        Message(
            3, "running", None, 0.25, forecast={"flip/budget": 0.1}, warnings=("No bit can flip.",)
        ),
        Message(3, "running", REPORT, 1.5, host="elsewhere"),
        Message(3, "finished", replace(REPORT, finished=True)),
        Message(4, "failed", None, reason="ValueError: «no»", details="Trace\nback"),
        Message(4, "stuck", None, reason="No space left on device"),
    ],
    ids=["forecast", "running", "finished", "failed", "stuck"],
)
def test_messages_travel_as_text(message: Message) -> None:
    text = message.encode()
    assert isinstance(text, str)
    found = Message.decode(text)
    assert found == message
    assert hash(found.warnings) == hash(message.warnings)  # tuples again
    if message.report is not None:
        assert found.report is not None
        assert isinstance(found.report.values, tuple)
        assert isinstance(found.report.rows, tuple)


def test_forecast_and_warnings_arrive_before_training(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []
    original = Trainer.run_epoch
    monkeypatch.setattr(
        Trainer,
        "run_epoch",
        lambda self, *given: epochs.append(self.epoch) or original(self, *given),
    )
    hopeless = mask_trial(2)
    hopeless = replace(hopeless, optim=replace(hopeless.optim, lr=1e-6))
    worker = FewShotTrainable(job(hopeless, number=5))
    first = Message.decode(worker.train()["message"])
    assert epochs == []
    assert (first.number, first.outcome, first.report) == (5, "running", None)
    assert 0 < first.forecast["flip/budget"] < 1
    assert "No mask bit can flip" in first.warnings[0]
    rest = listen(worker)
    assert epochs == [0, 1]
    assert [m.report.step for m in rest if m.report] == [1, 2]
    assert [m.outcome for m in rest] == ["running", "finished"]
    assert all(m.forecast == {} and m.warnings == () for m in rest)


def test_the_zero_shot_metrics_arrive_before_training_if_they_are_asked_for(
    job: Job, encoded_task: EncodedTask
) -> None:
    model = zero_shot_trial()
    first, *rest = listen(FewShotTrainable(job(residual_trial(2), zero_shot=model.to_dict())))
    trainer = Trainer(model, encoded_task, TASK.episodes[0])
    assert first.forecast == {ZERO_SHOT[o]: trainer.validate()[METRICS[o]] for o in METRICS}
    assert first.report is None
    assert all(m.forecast == {} for m in rest)


def test_a_trial_without_forecast_trains_at_once(job: Job) -> None:
    messages = listen(FewShotTrainable(job(residual_trial(2))))
    assert [m.report.step for m in messages if m.report] == [1, 2]
    assert all(m.seconds > 0 for m in messages)


def test_what_is_reported_is_the_run(job: Job, encoded_task: EncodedTask, tmp_path: Path) -> None:
    for in_sequence in (False, True):
        number = int(in_sequence)
        task = TWO_SEEDS
        config = job(residual_trial(3), number, task, in_sequence=in_sequence)
        run = TrialRun(residual_trial(3), task, encoded_task, in_sequence)
        for message in listen(FewShotTrainable(config)):
            report = run.advance()
            assert message.report is not None
            assert message.report.values == report.values
            assert message.report.metrics == report.metrics
        names = sorted(path.name for path in (tmp_path / f"{number:06}").iterdir())
        learned = ["artifact-seed1.safetensors", "artifact-seed4.safetensors"]
        assert names == [*learned, CHECKPOINT, VALIDATION]


def test_a_warm_worker_gives_what_a_cold_one_gives(job: Job) -> None:
    worker = FewShotTrainable(job(mask_trial(2), 0))
    listen(worker)
    assert worker.reset_config(job(residual_trial(2), 1)) is True
    warm = [listen(worker)]
    worker.reset_config(job(mask_trial(2), 2, in_sequence=True, task=TWO_SEEDS))
    warm.append(listen(worker))
    cold = [
        listen(FewShotTrainable(job(residual_trial(2), 3))),
        listen(FewShotTrainable(job(mask_trial(2), 4, in_sequence=True, task=TWO_SEEDS))),
    ]
    for first, second in zip(warm, cold, strict=True):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            if one.report is not None:
                assert without_times(one) == without_times(replace(other, number=one.number))
            else:
                assert one.forecast == other.forecast


def test_a_warm_worker_keeps_its_encoded_task(job: Job) -> None:
    worker = FewShotTrainable(job(residual_trial(1), 0))
    listen(worker)
    known = worker._task
    worker.reset_config(job(zero_shot_trial(), 1))
    listen(worker)
    assert worker._task is known


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"trial": residual_trial(2, lr=1e30)}, "NonFiniteError: residual/norm became inf"),
        ({"trial": mask_trial(2, leak=3.0)}, "MethodError: leak must be in [0, 1], got 3.0"),
        ({"task": replace(TASK, shots=(59,))}, "DataError: Every class needs as many"),
        ({"task": replace(TASK, datasets=("digit",))}, "DataError: There is no data set 'digit'"),
        ({"task": replace(TASK, backbone="tinny")}, "BackboneError: "),
    ],
    ids=["diverges", "bad value", "too few images", "no such data", "no such backbone"],
)
def test_a_failing_configuration_ends_the_trial_not_the_worker(
    bad: dict[str, Any], words: str, job: Job
) -> None:
    worker = FewShotTrainable(job(**({"trial": residual_trial(2)} | bad), number=8))
    *_, last = listen(worker)
    assert (last.number, last.outcome, last.report) == (8, "failed", None)
    assert last.reason.startswith(words)
    assert "\n" not in last.reason
    assert "Traceback" in last.details
    worker.reset_config(job(residual_trial(2), 9))
    *_, last = listen(worker)
    assert (last.number, last.outcome) == (9, "finished")


def test_an_unknown_method_fails_the_trial(job: Job) -> None:
    config = job(residual_trial(2))
    config["assignment"]["trial"]["method"] = "taskrez"
    (message,) = listen(FewShotTrainable(config))
    assert message.outcome == "failed"
    assert "taskrez" in message.reason


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "happens",
    [
        lambda: torch.empty(10**14),
        lambda: bytearray(10**17),
        *(
            partial(fail, error)
            for error in (
                torch.OutOfMemoryError("CUDA out of memory."),
                torch.AcceleratorError("CUDA error: device-side assert triggered"),
                RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
                RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            )
        ),
    ],
    ids=["cpu", "python", "cuda", "accelerator", "cublas", "cudnn"],
)
def test_lack_of_memory_or_a_broken_gpu_ends_the_worker(
    happens: Callable[[], object], job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only another process is certain to have the memory, and a GPU that works."""

    def full(self: TaskRes, inputs: Tensor) -> Tensor:
        happens()
        return inputs

    worker = FewShotTrainable(job(residual_trial(3), checkpoint_seconds=3600.0))
    assert not Message.decode(worker.train()["message"]).saved
    with monkeypatch.context() as patch:
        patch.setattr(TaskRes, "forward", full)
        with pytest.raises((RuntimeError, MemoryError)):
            worker.train()
    worker.cleanup()
    path = tmp_path / "000000" / CHECKPOINT
    assert not path.exists()  # it would hold half a step


@pytest.mark.parametrize(
    ("allocate", "is_own_fault"),
    [
        (lambda: torch.empty(10**14), True),
        (lambda: np.empty(10**14), True),
        (partial(fail, MemoryError()), False),  # a small process on a large machine
    ],
    ids=["torch", "numpy", "unknown size"],
)
def test_the_error_says_who_uses_the_memory(
    allocate: Callable[[], object], is_own_fault: bool, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FewShotTrainable(job(residual_trial(3)))
    monkeypatch.setattr(TaskRes, "forward", lambda self, inputs: allocate())
    with pytest.raises(MemoryError, match="The worker ran out of memory: it uses") as error:
        worker.train()
    found = re.search(r"it uses (\d+) bytes, all processes use (\d+) of (\d+)", str(error.value))
    assert found is not None
    own, used, limit = map(int, found.groups())
    assert 50 * 2**20 < own <= used + 2**30
    assert limit > 2**30
    assert (own > 4 * 10**14) is is_own_fault


def test_a_moved_folder_is_not_recreated(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "trials" / "000000"
    folder.mkdir(parents=True)
    for seconds in (0.0, 3600.0):  # at a checkpoint, at the end
        worker = FewShotTrainable(
            job(residual_trial(2), folder=str(folder), checkpoint_seconds=seconds)
        )
        (tmp_path / "sweep").rename(tmp_path / "elsewhere")
        message = listen(worker)[-1]
        worker.cleanup()
        assert message.outcome == "stuck"
        assert "'{}' was moved or deleted".format(tmp_path / "sweep") in message.reason
        assert not (tmp_path / "sweep").exists()
        (tmp_path / "elsewhere").rename(tmp_path / "sweep")


def test_a_retry_continues_where_the_checkpoint_is(job: Job) -> None:
    whole = listen(FewShotTrainable(job(mask_trial(3), 0)))
    first = FewShotTrainable(job(mask_trial(3), 1))
    for _ in range(3):  # the forecast and two parts
        first.train()
    rest = listen(FewShotTrainable(job(mask_trial(3), 1)))  # another process, another node
    assert rest[0].report is not None  # the part in the checkpoint again, and the forecast
    assert rest[0].forecast
    assert rest[0].report.step == 2
    assert len(rest) == 2
    assert rest[1].report is not None
    assert whole[-1].report is not None
    assert rest[1].report.values == whole[-1].report.values
    assert rest[1].report.metrics == whole[-1].report.metrics
    told = [row["epoch"] for m in rest if m.report for row in m.report.rows]
    assert told == [1.0, 2.0, 3.0]


def test_a_finished_trial_reports_again_without_training(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver died between the last report and its commit."""
    before = listen(FewShotTrainable(job(residual_trial(3))))

    def train(self: Trainer) -> dict[str, float]:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "run_epoch", train)
    (message,) = listen(FewShotTrainable(job(residual_trial(3))))
    assert message.outcome == "finished"
    assert message.report is not None
    assert before[-1].report is not None
    assert message.report.values == before[-1].report.values
    assert message.report.rows == tuple(row for m in before if m.report for row in m.report.rows)


def test_a_damaged_checkpoint_costs_time_not_truth(job: Job, tmp_path: Path) -> None:
    before = listen(FewShotTrainable(job(residual_trial(3))))
    path = tmp_path / "000000" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    again = listen(FewShotTrainable(job(residual_trial(3))))
    assert [without_times(m) for m in again] == [without_times(m) for m in before]


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_checkpoints_keep_their_distance(seconds: float, job: Job, tmp_path: Path) -> None:
    worker = FewShotTrainable(job(residual_trial(3), checkpoint_seconds=seconds))
    worker.train()
    assert (tmp_path / "000000" / CHECKPOINT).exists() is (seconds == 0.0)


def test_an_interrupted_trial_keeps_its_work(job: Job, tmp_path: Path) -> None:
    whole = listen(FewShotTrainable(job(residual_trial(3), 0)))
    worker = FewShotTrainable(job(residual_trial(3), 1, checkpoint_seconds=3600.0))
    worker.train()
    worker.train()
    worker.stop()
    assert (tmp_path / "000001" / CHECKPOINT).exists()
    again, last = listen(FewShotTrainable(job(residual_trial(3), 1)))
    assert again.report is not None
    assert again.report.step == 2
    assert last.report is not None
    assert whole[-1].report is not None
    assert last.report.metrics == whole[-1].report.metrics
    assert last.report.values == whole[-1].report.values


@pytest.mark.parametrize("end", ["finished", "committed", "failed", "not begun"])
def test_an_ended_trial_leaves_no_new_checkpoint(end: str, job: Job, tmp_path: Path) -> None:
    trial = residual_trial(3, lr=1e30 if end == "failed" else 1e-3)
    worker = FewShotTrainable(job(trial, checkpoint_seconds=3600.0))
    if end == "finished":
        listen(worker)
    elif end != "not begun":
        worker.train()
    if end == "committed":  # the pruner has stopped it
        (tmp_path / "000000").mkdir(exist_ok=True)
        (tmp_path / "000000" / "result.json").write_text("{}")
    worker.stop()
    assert not (tmp_path / "000000" / CHECKPOINT).exists()


def test_zero_shot_is_a_trial_of_one_report(job: Job, tmp_path: Path) -> None:
    (message,) = listen(FewShotTrainable(job(zero_shot_trial())))
    assert message.outcome == "finished"
    assert message.report is not None
    assert len(message.report.values) == 1
    assert (tmp_path / "000000" / "artifact.safetensors").exists()


def test_threads_are_set_as_told(job: Job) -> None:
    try:
        FewShotTrainable(job(residual_trial(1), threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_trial_that_may_be_stopped_has_an_artifact_before_that_report(
    job: Job, tmp_path: Path
) -> None:
    path = tmp_path / "000000" / "artifact.safetensors"
    worker = FewShotTrainable(job(residual_trial(4), keep_stopped=True, decision_steps=(2, 3)))
    seen: list[bytes] = []
    worker.train()
    assert not path.exists()
    for _ in range(3):
        worker.train()
        seen.append(path.read_bytes())
    assert len(set(seen)) == 3
    worker.reset_config(job(residual_trial(3), 1))
    worker.train()
    worker.train()
    assert not (tmp_path / "000001" / "artifact.safetensors").exists()
    stoppable = {"keep_stopped": True, "decision_steps": (1,)}
    in_sequence = job(residual_trial(2), 2, TWO_SEEDS, in_sequence=True, **stoppable)
    worker.reset_config(in_sequence)
    worker.train()
    names = [file.name for file in (tmp_path / "000002").glob("artifact*")]
    assert names == ["artifact-seed1.safetensors"]  # the other draw has not been trained


# --- in a user's script --------------------------------------------------------------------------

FLAT: dict[str, Any] = {"method": "taskres", "shots": 2, "epochs": 4, "device": "cpu"}


def test_flat_parameters_are_trained_like_an_assignment(job: Job) -> None:
    """Metrics are plain numbers; the forecast comes with the first report."""
    parameters = {"method": "rmt", "shots": 2, "epochs": 2, "leak": 0.3, "batch_size": 8}
    own = FewShotTrainable(parameters | {"device": "cpu"})
    results = [own.train(), own.train()]
    assert [result["epoch"] for result in results] == [1, 2]
    assert [result["done"] for result in results] == [False, True]
    assert "flip/budget" in results[0]
    assert own._run is not None
    swept = listen(FewShotTrainable(job(own._run.config)))
    assert swept[-1].report is not None
    assert swept[-1].report.metrics == {k: results[1][k] for k in swept[-1].report.metrics}
    assert "message" not in results[0]
    assert (Path(own.logdir) / "artifact.safetensors").exists()


def test_a_checkpoint_continues_with_other_settings(tmp_path: Path) -> None:
    first = FewShotTrainable(FLAT | {"lr": 1e-3})
    first.train()
    first.save_checkpoint(str(tmp_path))
    second = FewShotTrainable(FLAT | {"lr": 1e-2, "alpha": 0.9})
    second.load_checkpoint(str(tmp_path))
    result = second.train()
    assert (result["epoch"], result["done"]) == (2, False)
    rates = [worker.train()["train/lr"] for worker in (first, second)]
    assert rates[1] > rates[0]
    for other, words in (
        ({"epochs": 5}, "epochs and optimisers"),
        ({"optimiser": "sgd"}, "epochs and optimisers"),
        ({"shots": 1}, "continues only with the task"),
        ({"residual": "both"}, "tensors of the same shapes"),
    ):
        worker = FewShotTrainable(FLAT | other)
        with pytest.raises(CheckpointError, match=words):
            worker.load_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="missing or damaged"):
        FewShotTrainable(FLAT).load_checkpoint(str(tmp_path / "none"))


def test_a_stopped_trial_leaves_its_artifact() -> None:
    worker = FewShotTrainable(FLAT)
    worker.train()
    artifact = Path(worker.logdir) / "artifact.safetensors"
    assert not artifact.exists()
    worker.reset_config(FLAT | {"lr": 1e-2})
    assert artifact.exists()
    artifact.unlink()
    worker.stop()  # the next trial had not begun
    assert not artifact.exists()


def test_errors_of_flat_parameters_reach_tune() -> None:
    with pytest.raises(ParameterError, match="There is no parameter 'lrr' of taskres"):
        FewShotTrainable({"lrr": 0.1}).train()
    with pytest.raises(ParameterError, match="lr must be positive"):
        FewShotTrainable(FLAT | {"lr": -1.0}).train()


def test_short_steps_are_reported_together(job: Job) -> None:
    trial = residual_trial(3)
    single = listen(FewShotTrainable(job(trial)))
    (together,) = listen(FewShotTrainable(job(trial, 1, report_seconds=600.0)))
    assert len(single) == 3
    assert together.outcome == "finished"
    last = without_times(single[-1]).report
    found = without_times(together).report
    assert last is not None
    assert found is not None
    reports = [without_times(message).report for message in single]
    rows = [row for report in reports if report for row in report.rows]
    assert found == replace(last, rows=tuple(rows))


def test_steps_before_one_that_fails_are_reported(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = TrialRun.advance

    def breaks(run: TrialRun) -> Report:
        if run.step == 3:
            raise RuntimeError("a step")
        return advance(run)

    monkeypatch.setattr(TrialRun, "advance", breaks)
    (failed,) = listen(FewShotTrainable(job(residual_trial(8), report_seconds=600.0)))
    assert failed.outcome == "failed"
    assert failed.report is not None
    assert [row["epoch"] for row in failed.report.rows] == [1, 2, 3]
    assert len(failed.report.values) == 3


def test_a_step_that_is_decided_on_ends_a_report(job: Job) -> None:
    trial = residual_trial(8)
    sent = listen(FewShotTrainable(job(trial, report_seconds=600.0, decision_steps=(2, 6))))
    assert [message.report.step for message in sent if message.report] == [2, 6, 8]
    rows = [row["epoch"] for message in sent if message.report for row in message.report.rows]
    assert rows == list(range(1, 9))
