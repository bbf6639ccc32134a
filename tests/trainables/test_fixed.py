"""Fixed stages: trained once for all trials, and never confused with others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainables.trials import TASK, mask_trial, residual_trial
from trainables import fixed
from trainables.core.storage import LocalStorage
from trainables.core.tensor_file import read_checked
from trainables.encoded_task import EncodedTask
from trainables.fixed import stage_name
from trainables.stages import Pipeline
from trainables.trainer import Trainer
from trainables.trial import Episode
from trainables.trial_run import TrialRun

CELL = Episode("digits", 2, 1)
MASKS = replace(mask_trial(2), fixed=True)
CHAIN = residual_trial(3, batch_size=20).after(MASKS)
FREE = replace(CHAIN, before=replace(MASKS, fixed=False))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "few-shot-clip-search"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that are trained for an epoch, one by one."""
    found: list[str] = []
    original = Trainer.run_epoch

    def told(self: Trainer, validate: bool = True) -> dict[str, float]:
        found.append(self.config.method)
        return original(self, validate)

    monkeypatch.setattr(Trainer, "run_epoch", told)
    return found


def fresh(stages: str = "") -> EncodedTask:
    """Another worker's."""
    return EncodedTask("tiny", "cpu", TASK.source(""), stages=stages)


def run(training: Pipeline) -> list[dict[str, float]]:
    return [training.run_epoch() for _ in range(training.epochs)]


def test_it_ends_as_if_it_were_trained_in_every_trial(trained: list[str], cache: Path) -> None:
    free = Pipeline(FREE, fresh(), CELL)
    expected = run(free)[2:]
    trained.clear()
    encoded_task = fresh()
    first = Pipeline(CHAIN, encoded_task, CELL)
    assert trained == []  # not before it is needed
    assert first.epochs == 3
    assert run(first) == expected
    assert trained == ["rmt"] * 2 + ["taskres"] * 3
    artifact, metadata = first.artifact()
    theirs, words = free.artifact()
    assert metadata == words
    assert all(torch.equal(artifact[name], theirs[name]) for name in theirs)
    trained.clear()
    features = sorted(cache.rglob("*.arrow"))
    assert run(Pipeline(CHAIN, encoded_task, CELL)) == expected  # the same worker's next trial
    assert run(Pipeline(CHAIN, fresh(), CELL)) == expected  # another worker's
    assert trained == ["taskres"] * 6
    assert sorted(cache.rglob("*.arrow")) == features
    assert len(list((cache / "stages").glob("*.safetensors"))) == 1


def test_the_features_behind_it_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Pipeline(CHAIN, fresh(), CELL))
    before = sorted(cache.rglob("*.arrow"))

    def refuse(*_: object) -> None:
        raise AssertionError("features are computed again")

    monkeypatch.setattr("trainables.backbones.base.Backbone.encode_image", refuse)
    monkeypatch.setattr("trainables.encoded_task.class_features", refuse)
    run(Pipeline(CHAIN, fresh(), CELL))
    assert sorted(cache.rglob("*.arrow")) == before


def test_a_state_and_an_artifact_need_no_training(trained: list[str], cache: Path) -> None:
    first = Pipeline(CHAIN, fresh(), CELL)
    begun = first.state()
    first.run_epoch()
    tensors, plain = first.state()
    state = {name: tensor.clone() for name, tensor in tensors.items()}
    rest = [first.run_epoch() for _ in range(2)]
    for path in (cache / "stages").glob("*.safetensors"):
        path.unlink()
    trained.clear()
    second = Pipeline(CHAIN, fresh(), CELL)
    second.load_state(state, plain)
    assert second.epoch == 1
    assert [second.run_epoch() for _ in range(2)] == rest
    third = Pipeline(CHAIN, fresh(), CELL)
    third.load_artifact(*first.artifact())
    assert torch.equal(third.logits(third.val), first.logits(first.val))
    assert trained == ["taskres"] * 2
    fourth = Pipeline(CHAIN, fresh(), CELL)
    fourth.load_state(*begun)
    assert fourth.epoch == 0
    assert run(fourth)[1:] == rest


def test_its_epochs_are_no_parts_of_a_trial() -> None:
    trial = TrialRun(CHAIN, TASK, fresh())
    assert trial.steps == 3
    assert trial.forecast() == {}  # the residual has none: it is not the masks'
    assert [row["epoch"] for _ in range(3) for row in trial.advance().rows] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
def test_a_damaged_file_is_made_again(damage: str, trained: list[str], cache: Path) -> None:
    expected = run(Pipeline(CHAIN, fresh(), CELL))
    (path,) = (cache / "stages").glob("*.safetensors")
    good = path.read_bytes()
    bad = {"bit": good[:-1] + bytes([good[-1] ^ 1]), "cut": good[:-9], "empty": b""}[damage]
    path.write_bytes(bad)
    trained.clear()
    assert run(Pipeline(CHAIN, fresh(), CELL)) == expected
    assert "rmt" in trained
    assert read_checked(LocalStorage(path.parent), path.name) is not None


def test_the_sweeps_folder_serves_other_machines(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = tmp_path / "sweep" / "stages"
    expected = run(Pipeline(CHAIN, fresh(str(stages)), CELL))
    (shared,) = stages.iterdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    trained.clear()
    assert run(Pipeline(CHAIN, fresh(str(stages)), CELL)) == expected
    assert trained == ["taskres"] * 3
    (own,) = (tmp_path / "another machine").rglob("stages/*.safetensors")
    assert own.name == shared.name


def test_several_fixed_stages(trained: list[str]) -> None:
    config = residual_trial(1).after(replace(mask_trial(1, masked="mlp"), fixed=True)).after(MASKS)
    expected = run(Pipeline(config, fresh(), CELL))
    trained.clear()
    encoded_task = fresh()
    assert run(Pipeline(config, encoded_task, CELL)) == expected
    assert trained == ["taskres"]
    # The first alone is the same file.
    run(Pipeline(CHAIN, encoded_task, CELL))
    assert trained == ["taskres"] * 4


def test_names_differ_with_all_that_matters() -> None:
    encoded_task = fresh()
    source, backbone = encoded_task.source, encoded_task.backbone.fingerprint
    name = stage_name(MASKS, CELL, source, backbone)
    others = [stage_name(MASKS.seeded(1), CELL, source, backbone) for MASKS in [mask_trial(2)]]
    others += [stage_name(mask_trial(3), CELL, source, backbone)]
    others += [stage_name(mask_trial(2, leak=0.0), CELL, source, backbone)]
    others += [stage_name(MASKS, Episode("digits", 2, 2), source, backbone)]
    others += [stage_name(MASKS, Episode("digits", 4, 1), source, backbone)]
    others += [stage_name(MASKS, Episode("digits", 2, 1, "base"), source, backbone)]
    others += [stage_name(MASKS, Episode("digits-rotated", 2, 1), source, backbone)]
    others += [stage_name(MASKS, CELL, source, "0" * 64)]
    assert len({name, *others}) == 1 + len(others)
    # Not with what says only where the configuration is from.
    same = replace(MASKS, fixed=False, preset="paper", before=residual_trial(1))
    assert stage_name(same, CELL, source, backbone) == name


def test_processes_of_a_machine_train_it_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import torch; torch.set_num_threads(1);"
        "from tests.trainables.test_fixed import CELL, CHAIN, fresh, run;"
        "from trainables import fixed; from trainables.stages import Pipeline;"
        "train, told = fixed._train, [];"
        "fixed._train = lambda *a: told.append(1) or train(*a);"
        "task = fresh(); print('ready', flush=True);"
        "rows = run(Pipeline(CHAIN, task, CELL));"
        "print(len(told), rows[-1]['val/loss'])"
    )
    told, train, task = [], fixed._train, fresh()
    monkeypatch.setattr(fixed, "_train", lambda *a: told.append(1) or train(*a))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        rows = run(Pipeline(CHAIN, task, CELL))
        count, loss = process.communicate(timeout=120)[0].split()
    assert int(count) + len(told) == 1
    assert float(loss) == rows[-1]["val/loss"]


def test_the_lock_goes_with_its_owner(cache: Path) -> None:
    """A process that is killed in mid-training leaves no lock and no half file."""
    code = (
        "import os; from tests.trainables.test_fixed import CELL, CHAIN, fresh, run;"
        "from trainables import fixed; from trainables.stages import Pipeline;"
        "fixed._train = lambda *a: os.kill(os.getpid(), 9);"
        "run(Pipeline(CHAIN, fresh(), CELL))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert done.returncode == -9
    assert list((cache / "stages").glob("*.safetensors")) == []
    assert fixed.STAGES == "stages"
    assert run(Pipeline(CHAIN, fresh(), CELL))
