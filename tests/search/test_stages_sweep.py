"""Whole sweeps of stages, in real processes with a real Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.search.conftest import Sweep, environment, kill_everything
from tests.search.driver.test_sweep import ONE_BY_ONE, QUIET, comparable
from trainables.methods.masking.masks import pack_masks, unpack_masks

pytestmark = pytest.mark.slow

CHAIN = ("--space", "rmt+taskres", "--shots", "2", "--trials", "3", "--eval-seeds", "1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """An undisturbed sweep of masks and residuals."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), "calm")
    done = sweep.run_alone(*CHAIN, *ONE_BY_ONE, *QUIET, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return sweep


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_every_trial_trains_both_stages(undisturbed: Sweep) -> None:
    results = undisturbed.results()
    assert sorted(results) == [0, 1, 2]
    assert results[0]["config"]["preset"] == "paper"
    for number, result in results.items():
        config = result["config"]
        assert (config["before"]["method"], config["method"]) == ("rmt", "taskres")
        assert config["before"]["fixed"] is False
        assert {name.partition(".")[0] for name in result["parameters"]} == {"rmt", "taskres"}
        if result["state"] == "COMPLETE":
            assert "residual/norm" in result["metrics"]
            assert "mask/flipped" not in result["metrics"]
            path = undisturbed.folder / f"trials/{number:06d}/artifact.safetensors"
            assert metadata(path)["format"] == "pipeline"
    evaluation = undisturbed.evaluation()
    labels = [score["label"] for score in evaluation["scores"]]
    assert labels == ["zero-shot", "start", "paper", "winner"]
    assert metadata(undisturbed.folder / "winner/artifact-seed2.safetensors")["format"] == (
        "pipeline"
    )


def test_a_pipeline_is_exported_with_all_its_stages(undisturbed: Sweep, tmp_path: Path) -> None:
    """The masks are folded into the merged CLIP and the residual into its classifier; the export
    itself checks that it agrees with the trial."""
    for form in ("artifact", "merged", "onnx"):
        done = export(undisturbed, "--format", form, "--output", str(tmp_path / form))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "(rmt+taskres, digits" in done.stdout
        assert "same predictions" in done.stdout
        assert json.loads((tmp_path / form / "card.json").read_text())["method"] == "rmt+taskres"
    (names,) = {tuple(load_file(tmp_path / "merged" / "classifier.safetensors"))}
    assert names == ("weight",)
    refused = export(undisturbed, "--format", "mask", "--output", str(tmp_path / "mask"))
    assert refused.returncode == 2
    assert "the method rmt+taskres learns more than masks" in refused.stderr


def export(sweep: Sweep, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "search.export", sweep.name, "--storage", str(sweep.storage)]
    return subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        check=False,
    )


def in_the_second_stage(checkpoint: Path) -> bool:
    try:
        (episode,) = json.loads(metadata(checkpoint)["run"])["episodes"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return False
    return bool(episode["before"]) and episode["now"]["epoch"] > 0


def test_killed_in_the_second_stage_and_continued(sweep: Sweep, undisturbed: Sweep) -> None:
    options = (*CHAIN, *ONE_BY_ONE, *QUIET, "--checkpoint-seconds", "0")
    process = sweep.start(*options)
    checkpoint = sweep.folder / "trials/000000/checkpoint.safetensors"
    sweep.wait_until(lambda: in_the_second_stage(checkpoint), timeout=200)
    kill_everything(process)
    assert sweep.results() == {}
    assert in_the_second_stage(checkpoint)
    done = sweep.run_alone(*options, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert comparable(sweep.results()) == comparable(undisturbed.results())


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A finished sweep to start from: draw 1 in its search, draw 2 in its evaluation. One bit in
    each of their masks is flipped to identify them."""
    sweep = Sweep(tmp_path_factory.mktemp("started"), "masks")
    options = ("--space", "rmt", "--shots", "2", "--trials", "2", "--eval-seeds", "1")
    done = sweep.run_alone(*options, *ONE_BY_ONE, *QUIET, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for bit, path in enumerate(artifacts(sweep)):
        words = metadata(path)
        masks = unpack_masks(load_file(path), words, words["backbone"])
        next(iter(masks.values())).view(-1)[bit] ^= True
        tensors, packed = pack_masks(masks, words["backbone"])
        save_file(tensors, path, words | packed)
    return sweep


def artifacts(sweep: Sweep) -> tuple[Path, Path]:
    """Of the winner: on the draw of the search, and on that of the evaluation."""
    trial = sweep.folder / f"trials/{sweep.evaluation()['winner']:06d}"
    return trial / "artifact.safetensors", sweep.folder / "winner/artifact-seed2.safetensors"


def test_a_sweep_that_starts_from_another_ones_winner(masks: Sweep) -> None:
    sweep = Sweep(masks.storage, "residual")
    options = ("--init-from", "masks", "--trials", "3", "--seeds", "1,2", "--eval-seeds", "1")
    space = ("--space", "taskres")
    done = sweep.run_alone(*space, *options, "--max-concurrent", "2", *QUIET, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    best = masks.evaluation()["winner"]
    assert f"after trial {best} of {masks.folder}" in done.stdout
    winner = masks.results()[best]["config"]
    results = sweep.results()
    assert len(results) == 3
    for result in results.values():
        before = result["config"]["before"]
        assert before == winner | {"fixed": True}
        assert not any(name.startswith("before") for name in result["parameters"])
    # Draws 1 and 2 are the other sweep's, draw 3 was trained once, for paper and winner.
    kept = [load_file(path) for path in sorted((sweep.folder / "stages").iterdir())]
    assert len(kept) == 3
    theirs = artifacts(masks)
    for path in theirs:
        artifact = load_file(path)
        assert sum(_same(artifact, tensors) for tensors in kept) == 1
    # The masks within each artifact of the new sweep are these.
    last = sweep.evaluation()["winner"]
    for seed, path in zip((1, 2), theirs, strict=True):
        own = load_file(sweep.folder / f"trials/{last:06d}/artifact-seed{seed}.safetensors")
        first = {n.removeprefix("0/"): t for n, t in own.items() if n.startswith("0/")}
        assert _same(first, load_file(path))
    # The starting model has its own row: the other sweep's winner, on its own draw.
    values = {s["label"]: s["values"] for s in sweep.evaluation()["scores"]}
    assert list(values) == ["zero-shot", "start", "paper", "winner"]
    assert "the starting model" in done.stdout
    again = sweep.run_alone("--space", "taskres", *options, *QUIET)
    assert again.returncode == 0, again.stderr
    without = sweep.run_alone("--space", "taskres", "--shots", "2", "--seeds", "1,2", *QUIET)
    assert without.returncode == 2
    assert "start: the sweep has" in without.stderr


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
