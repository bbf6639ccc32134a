"""The seal on test data: who may open it, what a sealed process refuses, and that no trial reads
it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.trainables.data.listed import listed
from tests.trainables.trials import TASK, mask_trial, residual_trial
from trainables import trial_run
from trainables.core.storage import LocalStorage
from trainables.core.store import Store
from trainables.data import digits
from trainables.data.base import DataError, Images, PixelRows, SealedError, Split
from trainables.data.digits import Digits
from trainables.data.registry import DataSource, open_dataset
from trainables.data.sealed import TestPermit, check_test_split, read_test_split, seal_process
from trainables.encoded_task import EncodedTask
from trainables.trial import TrialConfig
from trainables.trial_run import TrialRun

ROOT = Path(__file__).parents[3]
SEAL = "FEWSHOT_PROCESS_ROLE"
HOME = "trainables/data/sealed.py"

BENCHMARKS = {
    *("benchmarks/mask_results.py", "benchmarks/selection/tasks.py"),
    "benchmarks/reproduction.py",
}
"""They compare rules of selection by test accuracy, which no sweep can, or time a read; nothing
imports them."""

USERS = {
    "read_test_split": {"search/evaluation/workers.py"},
    "check_test_split": {
        *("search/doctor.py", "search/core/task.py", "search/reproduction/plan.py"),
    },
    "sealed_split": {
        HOME,
        # Derived data sets pass their permit on.
        *("trainables/data/class_subsets.py", "trainables/data/derived.py"),
        *BENCHMARKS,
    },
    "TestPermit()": {HOME, *BENCHMARKS},
    SEAL: {HOME},
}
"""Who may import or name the functions, call the method, make a permit, know the switch."""

FUNCTIONS = {"read_test_split", "check_test_split"}


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that neither trains nor evaluates, such as a driver; no role outlives its test."""
    monkeypatch.setenv(SEAL, "")


# --- who may ask: the syntax trees ---------------------------------------------------------------


def uses(source: str) -> set[str]:
    """Which of `USERS`' keys the source makes use of; defining a method is no use."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=module, names=names):
                imported = {alias.name for alias in names}
                found |= imported & FUNCTIONS
                if module == "trainables.data.sealed" and "*" in imported:
                    found |= {*FUNCTIONS, "TestPermit()"}
                # A renamed permit could be made under another name.
                if any(a.name == "TestPermit" and a.asname not in (None, a.name) for a in names):
                    found.add("TestPermit()")
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in FUNCTIONS:
                found.add(name)
            case ast.Attribute(attr="sealed_split"):
                found.add("sealed_split")
            case ast.Call(func=ast.Name(id="TestPermit") | ast.Attribute(attr="TestPermit")):
                found.add("TestPermit()")
            case ast.Constant(value=str(name)) if name in {*FUNCTIONS, "sealed_split"}:
                found.add(name)  # getattr and alike
            case ast.Constant(value="TestPermit"):
                found.add("TestPermit()")
            case ast.Constant(value=str(text)) if SEAL in text:
                found.add(SEAL)
    return found


def sources() -> Iterator[Path]:
    """Everything of the project but its tests."""
    for path in sorted(ROOT.glob("*/**/*.py")):
        if path.relative_to(ROOT).parts[0] in ("search", "spaces", "trainables", "benchmarks"):
            yield path


def test_only_those_ask_who_may() -> None:
    found: dict[str, set[str]] = {key: set() for key in USERS}
    for path in sources():
        for key in uses(path.read_text(encoding="utf-8")):
            found[key].add(path.relative_to(ROOT).as_posix())
    assert found == USERS


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("from trainables.data.sealed import read_test_split", "read_test_split"),
        ("from trainables.data.sealed import read_test_split as r", "read_test_split"),
        ("from trainables.data.sealed import *", "read_test_split"),
        ("from trainables.data import sealed\nsealed.read_test_split(d, r)", "read_test_split"),
        ("getattr(sealed, 'read_test_split')(d, r)", "read_test_split"),
        ("from trainables.data.sealed import check_test_split", "check_test_split"),
        ("sealed.check_test_split(d)", "check_test_split"),
        ("dataset.sealed_split(permit)", "sealed_split"),
        ("getattr(dataset, 'sealed_split')(permit)", "sealed_split"),
        ("f = dataset.sealed_split", "sealed_split"),
        ("TestPermit('digits')", "TestPermit()"),
        ("sealed.TestPermit('digits')", "TestPermit()"),
        ("from trainables.data.sealed import TestPermit as P\nP('digits')", "TestPermit()"),
        (f"os.environ.pop('{SEAL}')", SEAL),
    ],
)
def test_a_breach_would_be_seen(source: str, key: str) -> None:
    assert key in uses(source)


def test_what_a_data_set_needs_is_no_breach() -> None:
    source = """
from trainables.data.sealed import TestPermit
class Pets:
    def sealed_split(self, permit: TestPermit) -> Split:
        permit.check(self.name)
"""
    assert uses(source) == set()


# --- what a permit opens (all of the field's data sets: test_coop.py) ---------------------------


@dataclass(frozen=True)
class Noting(Digits):
    """Digits that note when their test rows are given."""

    notes: tuple[list[str], ...] = ()

    def _rows(self, name: str) -> Split:
        for note in self.notes:
            note.append(name)
        return super()._rows(name)


def test_the_read_is_recorded_before_any_image_is_given() -> None:
    notes: list[str] = []
    split = read_test_split(Noting("digits", notes=(notes,)), lambda: notes.append("recorded"))
    assert notes == ["recorded", "test"]
    assert len(split.labels) == 896


def test_no_record_no_data() -> None:
    notes: list[str] = []

    def full_disk() -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        read_test_split(Noting("digits", notes=(notes,)), full_disk)
    assert notes == []


@pytest.mark.parametrize("name", ["digits", "digits-rotated"])
def test_another_data_sets_permit_does_not_open(name: str) -> None:
    with pytest.raises(SealedError, match=f"A permit for 'other' does not open '{name}'"):
        open_dataset(name).sealed_split(TestPermit("other"))


@pytest.mark.parametrize("name", ["digits", "digits-rotated"])
def test_a_sealed_process_refuses_even_a_fitting_permit(person: None, name: str) -> None:
    recorded: list[str] = []
    seal_process()
    with pytest.raises(SealedError, match="Test data cannot be read in a process that trains"):
        open_dataset(name).sealed_split(TestPermit(name))
    with pytest.raises(SealedError, match="Test data cannot be read in a process that trains"):
        read_test_split(open_dataset(name), lambda: recorded.append("recorded"))
    with pytest.raises(SealedError, match="Test data cannot be read in a process that trains"):
        check_test_split(open_dataset(name))
    assert recorded == []


def test_a_look_whether_it_can_be_read_gives_nothing_out() -> None:
    """The function returns None, and errors contain only the name of the invalid item."""
    sound = listed(classes=2)
    assert check_test_split(sound, decoded=9) is None  # type: ignore[func-returns-value]
    broken = replace(sound, broken=frozenset({"test/c1/1.jpg"}))
    check_test_split(broken)
    with pytest.raises(DataError, match=r"^'test/c1/1.jpg' cannot be read.$"):
        check_test_split(broken, decoded=9)
    check_test_split(broken, skip_unreadable=True)
    lost = replace(sound, broken=frozenset({"test/c1/0.jpg", "test/c1/1.jpg", "test/c0/0.jpg"}))
    with pytest.raises(DataError, match=r"class 1 has none of 2: .*'test/c1/1.jpg' cannot be read"):
        check_test_split(lost, skip_unreadable=True)


@pytest.mark.parametrize("name", ["digits", "digits-rotated"])
def test_the_open_door_does_not_lead_to_test_data(name: str) -> None:
    with pytest.raises(SealedError):
        open_dataset(name).split("test")  # type: ignore[arg-type]


def test_processes_started_by_a_sealed_one_are_sealed(person: None) -> None:
    seal_process()
    script = (
        "from types import SimpleNamespace\n"
        "from trainables.data.sealed import read_test_split\n"
        "read_test_split(SimpleNamespace(name='digits'), lambda: print('recorded'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "SealedError" in done.stderr
    assert done.stdout == ""


def test_only_a_process_started_for_an_evaluation_reads(person: None) -> None:
    recorded: list[str] = []
    with pytest.raises(SealedError, match="started for an evaluation"):
        read_test_split(open_dataset("digits"), lambda: recorded.append("recorded"))
    assert recorded == []
    check_test_split(open_dataset("digits"))


def test_an_evaluation_process_never_trains() -> None:
    with pytest.raises(SealedError, match="cannot train"):
        seal_process()
    assert len(read_test_split(open_dataset("digits"), lambda: None).labels) == 896


# --- that no trial reads it ----------------------------------------------------------------------


def test_no_trial_touches_test_data(person: None, tmp_path: Path) -> None:
    """Every method in one warm worker, on data that note and refuse any look at test rows; then
    two data sets that try to hand out their test split for training."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainables.data.sealed_trials", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["read"] == ["train", "val"]
    assert found["looks"] == 0
    assert found["outcomes"][:4] == ["finished"] * 4
    assert len(found["outcomes"]) == 6
    for reason in found["outcomes"][4:]:
        assert reason.startswith("SealedError: Test data cannot be read")
    assert found["recorded"] == []
    assert found["after"].startswith("Test data cannot be read")


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every test image on disk by noise and every test label by a wrong one."""
    pixels, labels = (array.copy() for array in digits.read_digits())
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
    rows = digits._partition(grey, labels)
    noise = np.random.default_rng(0).integers(0, 17, (len(rows["test"]), 64))
    pixels[rows["test"]] = noise
    labels[rows["test"]] = (labels[rows["test"]] + 1) % 10
    monkeypatch.setattr(digits, "read_digits", lambda: (pixels.copy(), labels.copy()))
    monkeypatch.setattr(digits, "_partition", lambda grey, labels: rows)


def pixels(images: Images) -> Tensor:
    """uint8 [n, 3, h, w]: digits are in memory."""
    assert isinstance(images, PixelRows)
    return images.pixels


def whole_run(trial: TrialConfig, folder: Path) -> tuple[object, ...]:
    """All messages and files of a trial with a fresh encoded task."""
    folder.mkdir()
    encoded_task = EncodedTask("tiny", "cpu", DataSource())
    encoded_task._store = Store(
        folder.with_suffix(".cache")
    )  # what another run has computed is no help
    run = TrialRun(trial, TASK, encoded_task)
    reports = []
    while not run.finished:
        reports.append(run.advance())
        run.save(LocalStorage(folder), f"checkpoint-{run.step}")
    run.save_artifacts(LocalStorage(folder))
    return reports, {path.name: content(path) for path in sorted(folder.iterdir())}


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and tensors, byte for byte: safetensors writes its header in any order."""
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return metadata, {
        key: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for key, t in tensors.items()
    }


@pytest.mark.parametrize("trial", [residual_trial(), mask_trial(2)], ids=["taskres", "rmt"])
def test_poisoned_test_data_change_nothing(
    trial: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_run.time, "time", lambda: 0.0)
    clean_split = read_test_split(open_dataset("digits"), lambda: None)
    clean = whole_run(trial, tmp_path / "clean")
    poison(monkeypatch)
    poisoned_split = read_test_split(open_dataset("digits"), lambda: None)
    poisoned = whole_run(trial, tmp_path / "poisoned")
    same = pixels(poisoned_split.images) == pixels(clean_split.images)
    assert not same.flatten(1).all(1).any()
    assert not (poisoned_split.labels == clean_split.labels).any()
    assert clean == poisoned


def test_poisoned_validation_data_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-check: the comparison above can fail."""
    monkeypatch.setattr(trial_run.time, "time", lambda: 0.0)
    clean = whole_run(residual_trial(), tmp_path / "clean")
    original = Digits._rows

    def inverted(self: Digits, name: str) -> Split:
        split = original(self, name)
        return Split(PixelRows(255 - pixels(split.images)), split.labels, split.fingerprint)

    monkeypatch.setattr(Digits, "_rows", inverted)
    assert whole_run(residual_trial(), tmp_path / "poisoned") != clean
