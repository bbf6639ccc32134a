"""`python -m search.reproduce`, in miniature on a real Ray: results, resuming, kills, mistakes."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from search.reproduce import main
from tests.search.conftest import environment, kill_everything, run_here
from tests.shared_ray import share_ray
from tests.trainables.data.trees import dtd, eurosat

SMALL = ("taskres/table-2", "--embedded", "--shots", "1")
TRAININGS = 1 + 3 * 2
"""Zero-shot, and three rows on two draws."""


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "search.reproduce", *options, "--storage", str(folder)]


def reproduce(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    share_ray()
    return run_here(main, *options, "--storage", str(folder))


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a new session, so that Ray's processes can be killed with it."""
    return subprocess.Popen(
        command(folder, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=environment(),
    )


def lines(folder: Path, name: str = "cells.jsonl") -> list[dict[str, Any]]:
    path = folder / name
    whole = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in whole:
        try:
            found.append(json.loads(line))
        except ValueError:  # what a kill has left of a line
            continue
    return found


def stored(folder: Path, kind: str) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "evaluation").glob(f"{kind}-*")}


def numbers(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("calm")
    done = reproduce(folder, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_cell_is_trained_once_and_every_read_is_on_record(calm: Path) -> None:
    assert len(lines(calm)) == len(stored(calm, "model")) == TRAININGS
    assert len({line["training"] for line in lines(calm)}) == TRAININGS
    reads = lines(calm, "test_reads.jsonl")
    assert len(reads) == TRAININGS
    assert {read["dataset"] for read in reads} == {"digits"}
    assert stored(calm, "checkpoint") == {}


def test_every_row_has_its_numbers(calm: Path) -> None:
    found = numbers(calm, "taskres-table-2")
    assert len(found) == 4
    assert {int(row["n"]) for row in found} == {1, 2}
    assert all(0 < float(row["mean"]) < 100 for row in found)
    assert {row["comparable"] for row in found} == {"0"}


def test_files_have_the_table_in_every_format(calm: Path) -> None:
    markdown = (calm / "taskres-table-2.md").read_text()
    assert "| row | number | 1 |" in markdown
    assert "not comparable with the published numbers: the embedded model" in markdown
    latex = (calm / "taskres-table-2.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    page = (calm / "reproduced.html").read_text()
    assert "taskres/table-2" in page
    assert "TaskRes" in page


def test_the_same_command_again_trains_nothing(calm: Path) -> None:
    before = (calm / "cells.jsonl").read_bytes(), stored(calm, "model")
    done = reproduce(calm, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ((calm / "cells.jsonl").read_bytes(), stored(calm, "model")) == before


def kill_at_random(folder: Path, kills: int, longest: float, options: Sequence[str]) -> None:
    """Kill a run again and again after a random time; check that what is committed stays."""
    rng = random.Random(kills)
    committed: dict[str, int] = {}
    for _ in range(kills):
        process = start(folder, *options)
        time.sleep(rng.uniform(0.5, longest))
        kill_everything(process)
        models = stored(folder, "model")
        now = {line["training"] for line in lines(folder)}
        assert committed.items() <= models.items(), "a committed cell was trained again"
        committed = {name: t for name, t in models.items() if name[6:-12] in now}


def same_as(folder: Path, calm: Path, table: str, options: Sequence[str]) -> None:
    done = reproduce(folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert numbers(folder, table) == numbers(calm, table)
    jobs = [line["job"] for line in lines(folder)]
    assert len(jobs) == len(set(jobs)) == len(lines(calm))


def test_a_killed_run_ends_with_the_same_table(calm: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *SMALL)
    deadline = time.monotonic() + 400
    while len(lines(tmp_path)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill_everything(process)
    committed = {f"model-{line['training']}.safetensors" for line in lines(tmp_path)}
    before = stored(tmp_path, "model")
    same_as(tmp_path, calm, "taskres-table-2", SMALL)
    after = stored(tmp_path, "model")
    assert {after[name] for name in committed} == {before[name] for name in committed}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_end_with_the_same_table(tmp_path: Path) -> None:
    options = ("taskres/table-2", "--embedded")
    done = reproduce(tmp_path / "calm", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    kill_at_random(tmp_path / "killed", 20, 40, options)
    same_as(tmp_path / "killed", tmp_path / "calm", "taskres-table-2", options)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_table_and_figure_runs_in_miniature(tmp_path: Path) -> None:
    done = reproduce(tmp_path, "taskres", "rmt", "--embedded")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("taskres-figure-4", "rmt-figure-7", "rmt-table-13", "taskres-table-1"):
        assert numbers(tmp_path, name), name


# --- data at hand --------------------------------------------------------------------------------


def test_missing_data_sets_are_left_out_by_name(tmp_path: Path) -> None:
    """Two of the eleven are there: the others are named, and the average is over the two."""
    dtd(tmp_path / "data")
    eurosat(tmp_path / "data")
    data = ("--data", str(tmp_path / "data"), "--backbone", "tiny", "--seeds", "1")
    done = reproduce(tmp_path / "out", "taskres/table-11", *data, "--shots", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Skipped: imagenet (" in done.stdout
    assert "Skipped: dtd" not in done.stdout
    assert len(lines(tmp_path / "out")) == 2
    assert "Averages are over dtd, eurosat, without imagenet, caltech101" in done.stdout
    (average,) = [
        row
        for row in numbers(tmp_path / "out", "taskres-table-11")
        if (row["dataset"], row["measure"]) == ("average", "residual-mean")
    ]
    assert float(average["mean"]) > 0


def test_a_failed_training_stops_no_other_and_is_repeated_on_request(tmp_path: Path) -> None:
    """The images of one of two data sets are damaged, and restored later."""
    root, out = tmp_path / "data", tmp_path / "out"
    dtd(root)
    eurosat(root)
    images = {path: path.read_bytes() for path in (root / "dtd").rglob("*.jpg")}
    for path in images:
        path.write_bytes(b"no image")
    data = ("--data", str(root), "--backbone", "tiny", "--only", "dtd,eurosat")
    options = ("taskres/table-11", *data, "--seeds", "1", "--shots", "1")
    done = reproduce(out, *options)
    assert done.returncode == 1
    assert "Failed: TaskRes, dtd, 1 shots, draw 1: DataError: Every image must be" in done.stdout
    assert "Averages need every data set. Repeat what failed with --retry-failed." in done.stdout
    assert "Averages are over" not in done.stdout
    (trained,) = {row["dataset"] for row in numbers(out, "taskres-table-11") if row["mean"]}
    assert trained == "eurosat"

    for path, content in images.items():
        path.write_bytes(content)
    before, models = lines(out), stored(out, "model")
    again = reproduce(out, *options)
    assert again.returncode == 1, "a failure is not repeated unasked"
    assert lines(out) == before
    done = reproduce(out, *options, "--retry-failed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Averages are over dtd, eurosat, without imagenet, caltech101" in done.stdout
    assert models.items() < stored(out, "model").items(), "the other training is not repeated"


def test_bundles_serve_methods_on_features(tmp_path: Path) -> None:
    """TaskRes trains on features; nothing else of the table is at hand."""
    rng = torch.Generator().manual_seed(0)
    tensors = {"class_features": torch.randn(3, 8, generator=rng)}
    for split in ("train", "val", "test"):
        tensors[f"{split}_features"] = torch.randn(12, 8, generator=rng)
        tensors[f"{split}_labels"] = torch.arange(12) % 3
    facts = {"class_names": '["a", "b", "c"]', "backbone": "RN50", "logit_scale": "100.0"}
    (tmp_path / "RN50").mkdir()
    save_file(tensors, tmp_path / "RN50" / "oxford_flowers.safetensors", facts)
    options = ("taskres/table-11", "--bundles", str(tmp_path), "--shots", "1,2", "--seeds", "1,2")
    done = reproduce(tmp_path / "out", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines(tmp_path / "out")) == 4
    assert "Skipped: dtd (no bundle in" in done.stdout
    assert "features from bundles, whose weights are not verified" in done.stdout


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["rmt/table-99", "--embedded"], "There is no table 'rmt/table-99'"),
        (["rmt/table-4"], "A table needs data: add --data ROOT"),
        (["rmt/table-4", "--embedded", "--shots", "3"], "--shots must be one of the table's (16)"),
        (["rmt/table-4", "--embedded", "--seeds", "1,1"], "--seeds must be different numbers"),
        (["rmt/table-1", "--data", ".", "--only", "x"], "--only must be one of the table's"),
        (["rmt/table-4", "--embedded", "--backbone", "RN50"], "--backbone cannot be used with"),
        (["rmt/table-4", "--embedded", "--bundles", "."], "--bundles cannot be used with"),
        (["rmt/table-4", "--embedded", "--only", "imagenet"], "--only cannot be used with"),
        (["rmt/table-4", "--embedded", "--published-draws"], "--published-draws cannot be used"),
        (["rmt/table-4", "--bundles", "nowhere"], "--bundles must be a folder, got 'nowhere'"),
        (["rmt/table-2", "--bundles", "."], "--bundles requires a few-shot table"),
        (["rmt/table-4", "--bundles", ".", "--backbone", "RN50"], "--backbone cannot be used"),
        (["rmt/table-4", "--embedded", "--device", "tpu"], "--device"),
        (["rmt/table-4", "--embedded", "--address", "nowhere"], "--address must be HOST:PORT"),
        (["rmt/table-4", "--embedded", "--cpus-per-trial", "9999"], "--cpus-per-trial is 9999"),
        (["rmt/table-4", "--embedded", "--gpus-per-trial", "-1"], "--gpus-per-trial must be"),
        (["rmt/table-4", "--data", "/nowhere"], "imagenet: "),
    ],
)
def test_a_mistake_is_told_before_any_work(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    storage = tmp_path / "none"
    assert main([*options, "--storage", str(storage)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert all(line.startswith("error: ") for line in errors.splitlines())
    assert not storage.exists() or not os.listdir(storage)


def test_without_a_name_it_lists_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert "taskres/table-11" in listed
    assert "rmt/table-17" in listed


def test_a_dry_run_counts_every_cell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["taskres/table-2", "--embedded", "--dry-run", "--shots", "1,2"]
    assert main([*options, "--storage", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    assert "13 trainings on 360 images" in " ".join(out.split())
    assert "GiB of memory" in out
    assert not (tmp_path / "none").exists()
