"""The command line: rejected options, their messages, and that no work starts before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from search.core.config import IDENTITY, SweepConfig
from search.core.lock import SweepLock
from search.driver import preflight as preflight_module
from search.driver.backbone_probe import BackboneProbe, BackboneProbeProcess
from search.driver.preflight import preflight
from search.run import build_parser, configure, main
from spaces.registry import SPACES
from tests.trainables.data.trees import paint
from trainables.backbones.base import BackboneError
from trainables.backbones.registry import BACKBONES
from trainables.core.credentials import without_password
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts

CORES = len(os.sched_getaffinity(0))


NO_STORE = "s3://KEY:hush@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=x"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the backbone in this process: a child process takes four seconds per test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        preflight_module, "BackboneProbeProcess", lambda s: nullcontext(BackboneProbe(s))
    )


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The error lines of a command that must not have begun any work."""
    before = sorted(Path().rglob("*"))
    assert main(options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(Path().rglob("*")) == before
    lines = captured.err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), captured.err
    return lines


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--space", "rtm"), ["There is no space 'rtm'", "Did you mean 'rmt'?"]),
        (("--space", "rmt+taskrez"), ["There is no stage 'taskrez'", "Did you mean 'taskres'?"]),
        (("--space", "taskres+rmt"), ["must change the backbone", "'taskres' does not", "rmt"]),
        (("--init-from", "nobody"), ["There is no sweep 'nobody'"]),
        (
            ("--backbone", "m.safetensors@tiny"),
            ["mask artifact", "m.safetensors", "check the path"],
        ),
        (("--dataset", "digit"), ["There is no data set 'digit'", "Did you mean 'digits'?"]),
        (("--sampler", "tpee"), ["There is no sampler 'tpee'", "Did you mean 'tpe'?"]),
        (("--pruner", "ahsa"), ["There is no pruner 'ahsa'", "Did you mean 'asha'?"]),
        (("--backbone", "ViT-B-61"), ["ViT-B-61", "ViT-B-16"]),
        (("--backbone", "RN50:nothing"), ["nothing", "RN50"]),
        (("--backbone", "openai:missing.pt"), ["missing.pt"]),
        (("--shots", "100"), ["class 8", "has 58", "shots is 100", "Use --shots 58"]),
        (("--shots", "0"), ["--shots must be at least 1, got 0"]),
        (("--shots", "4,4"), ["--shots must differ", "4,4"]),
        (("--protocol", "few"), ["There is no protocol 'few'"]),
        (("--protocol", "cross-dataset"), ["cross-dataset", "only 'digits'"]),
        (("--shots", "many"), ["--shots", "many"]),
        (("--trials", "0"), ["--trials must be at least 1, got 0"]),
        (("--seeds", "1,1"), ["--seeds must differ", "1,1"]),
        (("--seeds", "-1"), ["--seeds must be at least 0, got -1"]),
        (("--seeds", "a,b"), ["--seeds", "whole numbers", "a,b"]),
        (("--time-budget", "soon"), ["--time-budget", "10m", "soon"]),
        (("--time-budget", "0"), ["--time-budget must be positive"]),
        (("--cpus-per-trial", "1000"), ["--cpus-per-trial is 1000", f"at most {CORES}"]),
        (("--cpus-per-trial", "0"), ["--cpus-per-trial must be at least 0.01, got 0"]),
        (("--cpus-per-trial", "1e-9"), ["--cpus-per-trial must be at least 0.01, got 1e-09"]),
        (("--cpus-per-trial", "nan"), ["--cpus-per-trial must be at least 0.01, got nan"]),
        (("--gpus-per-trial", "1e-9"), ["--gpus-per-trial must be 0 or at least 0.01"]),
        (("--gpus-per-trial", "inf"), ["--gpus-per-trial must be 0 or at least 0.01, got inf"]),
        (("--max-concurrent", "0"), ["--max-concurrent must be at least 1"]),
        (("--device", "tpu"), ["--device must be auto, cpu or cuda, got 'tpu'"]),
        (("--device", "cpu", "--gpus-per-trial", "1"), ["--device cpu", "--gpus-per-trial is 1"]),
        (("--gpus-per-trial", "-1"), ["--gpus-per-trial must be 0 or at least 0.01, got -1"]),
        (("--name", "../up"), ["--name must be letters", "../up"]),
        (("--storage", "s4://bucket/sweeps"), ["must be writable", "s4://bucket", "--storage"]),
        (("--storage", NO_STORE), ["must be writable", without_password(NO_STORE), "connect"]),
        (("--tracking-uri", "sqlite:////dev/null"), ["a regular file", "/dev/null"]),
        (("--study-storage", "journal"), ["--study-storage must be a database URL", "journal"]),
        (("--study-storage", "postgresql://[::1/db"), ["--study-storage", "Invalid IPv6 URL"]),
        (("--study-storage", "sqlite:////dev/null"), ["must be a regular file", "/dev/null"]),
        (("--ledger", "nosuch://host/db"), ["--study-storage must be a database URL", "nosuch"]),
        (("--tracking-uri", "./mlruns"), ["./mlruns", "sqlite:///"]),
        (("--resume", "nobody"), ["There is no sweep 'nobody'"]),
        (("--trails", "5"), ["--trails", "See --help"]),
        (("--address", "127.0.0.1:1"), ["--address must be HOST:PORT", "127.0.0.1:1"]),
        (("--address", "somewhere"), ["--address must be HOST:PORT", "somewhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_mistake_one_clear_line(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], expected: list[str]
) -> None:
    (line,) = refused(capsys, *options)
    for part in expected:
        assert part in line


def test_class_names_without_room_for_the_papers_context(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Names of any data set that a model is trained or evaluated on. The paper's context is shorter
    across data sets."""
    bird, birds = "a_long_name_of_a_bird", "_".join(["bird"] * 20)
    short, long, longest = (tmp_path_factory.mktemp(kind) for kind in ("short", "long", "longest"))
    for folder, name in ((short, "cat"), (long, bird), (longest, birds)):
        for place in range(6):
            paint(folder / "plain" / f"{place}.jpg", place)
            paint(folder / name / f"{place}.jpg", place + 6)
    options = ("--space", "coop", "--shots", "1", "--dry-run", "--dataset")
    across = f"folder:{short},folder:{longest}", "--protocol", "cross-dataset"
    for name, tokens, datasets in ((bird, 16, (f"folder:{long}",)), (birds, 4, across)):
        (line,) = refused(capsys, *options, *datasets)
        for part in (f"{tokens} context tokens", f"'{name.replace('_', ' ')}.'", "shorter name"):
            assert part in line


def test_all_mistakes_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--space x --dataset y --sampler z --pruner w --backbone nosuch --trials 0 --shots 0"
    assert len(refused(capsys, *options.split(), "--storage", "s4://b", "--seeds=-1")) == 9


def test_every_kind_of_mistake_is_reported_with_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A value of the wrong type, an unknown option, and missing sweeps and files."""
    options = "--trials many --seed x --trails 5 --resume nobody --name two --init-from nothing"
    lines = refused(capsys, *options.split(), "--sampler", "tpee", "--cpus-per-trial", "1000")
    for part in (
        "--trials must be a whole number, got 'many'.",
        "--seed must be a whole number, got 'x'.",
        "Unrecognized arguments: --trails. Did you mean --trials?",
        "--resume continues 'nobody', so --name must be omitted, got 'two'.",
        "There is no sweep 'nobody'",
        "There is no sweep 'nothing'",
        "There is no sampler 'tpee'",
        "--cpus-per-trial",
    ):
        assert len([line for line in lines if part in line]) == 1, (part, lines)
    assert len(lines) == 8
    missing = refused(capsys, "--dataset", "bundle:none.safetensors", "--trials", "0", "--sampler=")
    assert len(missing) == 3
    assert sum("none.safetensors" in line for line in missing) == 1


def test_data_is_not_checked_for_a_task_that_nobody_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the default data set in place of the misspelt option, 64 shots would be too many."""
    (line,) = refused(capsys, "--data-set", "folder:birds", "--shots", "64")
    assert "Did you mean --dataset?" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("options", [("--gpus-per-trial", "1"), ("--device", "cuda")])
def test_a_gpu_where_there_is_none(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    (line,) = refused(capsys, *options)
    assert "requires a CUDA device, and torch finds none on this machine" in line


def test_a_tracking_server_that_is_away_is_no_obstacle() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    Path("sweeps/there").mkdir(parents=True)
    plan = preflight(configure(["--tracking-uri", uri, "--name", "there"]))
    (notice,) = plan.notices
    assert uri in notice
    assert "\n" not in notice


def test_a_tracking_server_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "--tracking-uri", "http://no-such-host.invalid:5000")
    assert "no-such-host.invalid" in line


def test_a_damaged_tracking_database(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweeps").mkdir()
    Path("sweeps/mlflow.db").write_text("this is not a database, but it is long enough\n" * 50)
    (line,) = refused(capsys)
    assert "sqlite" in line


def test_storage_that_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("occupied").write_text("")
    (line,) = refused(capsys, "--storage", "occupied")
    assert "is not a folder" in line


def test_storage_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    # /proc accepts no new folders, even from root.
    (line,) = refused(capsys, "--storage", "/proc/sweeps", "--tracking-uri", "none")
    assert "must be writable" in line


@pytest.mark.parametrize("damage", ["cut", "html", "empty", "other shapes", "missing tensor"])
def test_damaged_weights(capsys: pytest.CaptureFixture[str], damage: str) -> None:
    shutil.copytree(BACKBONES["tiny"], "model")
    path = Path("model/open_clip_model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:100_000])
        case "html":
            path.write_text("<html><body>404 not found</body></html>")
        case "empty":
            path.write_bytes(b"")
        case "other shapes":
            save_file(tensors | {"visual.proj": torch.zeros(3, 3)}, path)
        case "missing tensor":
            del tensors["visual.proj"]
            save_file(tensors, path)
    (line,) = refused(capsys, "--backbone", "model")
    assert "model" in line


def stored(name: str, **changes: object) -> Path:
    """A sweep's folder as its first start leaves it."""
    config = configure(["--name", name, "--tracking-uri", "none"])
    plan = preflight(config)
    record = plan.record().to_dict()
    record["config"] |= changes
    folder = Path("sweeps") / name
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--shots", "8"), "shots: the sweep has [16], got [8]"),
        (("--space", "taskres"), 'space: the sweep has "rmt", got "taskres"'),
        (("--seeds", "1,2"), "seeds: the sweep has [1], got [1, 2]"),
        (("--sampler", "random"), 'sampler: the sweep has "tpe", got "random"'),
        (("--dataset", "digits-rotated"), "digits-rotated"),
    ],
)
@pytest.mark.parametrize("how", ["--name", "--resume"])
def test_other_settings_are_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], difference: str, how: str
) -> None:
    stored("mine")
    if options[0] == "--space" and how == "--name":
        options = (*options, "--seeds", "1")
    lines = refused(capsys, how, "mine", *options, "--tracking-uri", "none")
    assert any(difference in line for line in lines)
    assert all("--name" in line for line in lines)


def test_the_parts_of_a_sweep_are_all_looked_at_before_the_first_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored("each-digits-rotated-4shot")
    options = ("--per-task", "--dataset", "digits,digits-rotated", "--shots", "4")
    (line, *_) = refused(capsys, *options, "--name", "each", "--tracking-uri", "none")
    assert "'each-digits-rotated-4shot' differs" in line
    assert not Path("sweeps/each-digits-4shot/sweep.json").exists()


def test_another_model_under_the_same_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored("mine")
    record = json.loads((folder / "sweep.json").read_text())
    record["fingerprints"]["backbone"] = "0" * 64
    (folder / "sweep.json").write_text(json.dumps(record))
    (line,) = refused(capsys, "--resume", "mine")
    assert "backbone: the sweep has" in line


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_description_is_refused(capsys: pytest.CaptureFixture[str], content: str) -> None:
    folder = stored("mine")
    (folder / "sweep.json").write_text(content)
    (line,) = refused(capsys, "--resume", "mine")
    assert "sweep.json" in line or "description" in line


def test_resume_takes_the_stored_settings() -> None:
    stored("mine", sampler="random", trials=7)
    config = configure(["--resume", "mine", "--trials", "30"])
    assert (config.sampler, config.trials, config.name) == ("random", 30, "mine")


def test_a_second_driver_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored("mine")
    with SweepLock(LocalStorage(folder)):
        (line,) = refused(capsys, "--resume", "mine", "--tracking-uri", "none")
    assert f"process {os.getpid()}" in line


def test_a_damaged_result_is_refused_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored("mine")
    (folder / "trials/000003").mkdir(parents=True)
    path = folder / "trials/000003/result.json"
    path.write_text('{"format": 2, "number"')
    assert main(["--resume", "mine", "--tracking-uri", "none"]) == 2
    assert "000003/result.json" in capsys.readouterr().err
    assert path.read_text() == '{"format": 2, "number"'


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    options = (
        "--space --init-from --dataset --backbone --shots --seeds --trials --sampler --pruner "
        "--time-budget --retry-failed --name --resume --storage --study-storage --tracking-uri "
        "--address "
        "--cpus-per-trial --gpus-per-trial --max-concurrent --device --seed --eval-seeds"
    )
    for option in options.split():
        assert f"\n  {option} " in text, option
    for name in (*SPACES, "tpe", "gp", "cmaes", "random", "nsga2", "asha", "hyperband", "wilcoxon"):
        assert name in text


def test_options_have_no_default_of_their_own() -> None:
    assert vars(build_parser().parse_args([])) == {}


def test_the_name_follows_from_the_identity() -> None:
    first, same = configure([]), configure(["--trials", "99", "--max-concurrent", "1"])
    other = configure(["--shots", "8"])
    assert first.sweep_name == same.sweep_name != other.sweep_name
    assert set(first.identity()) == set(IDENTITY)


def test_configuration_round_trip() -> None:
    config = configure(["--space", "taskres", "--time-budget", "1.5h", "--seeds", "3,4"])
    assert config.time_budget == 5400
    assert SweepConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_relative_model_paths_become_absolute(tmp_path: Path) -> None:
    shutil.copytree(BACKBONES["tiny"], "model")
    assert configure(["--backbone", "model"]).task.backbone == str(tmp_path / "model")
    assert configure(["--backbone", "tiny"]).task.backbone == "tiny"
    assert configure(["--backbone", "ViT-B-16:openai"]).task.backbone == "ViT-B-16:openai"


def test_the_backbone_looks_the_same_from_another_process() -> None:
    paper = SPACES["rmt"].build(TaskFacts("digits", 4, 40, "vit")).paper
    here = BackboneProbe("tiny")
    with BackboneProbeProcess("tiny") as apart:
        assert apart.facts() == here.facts()
        names = [["zero", "one"]]
        assert apart.check_methods(paper, names, 40) == here.check_methods(paper, names, 40) == ""
        wrong = replace(paper, method_config=replace(paper.method_config, leak=3.0))
        assert apart.check_methods(wrong, names, 40) == here.check_methods(wrong, names, 40) != ""
    with (
        BackboneProbeProcess("no-such-model") as apart,
        pytest.raises(BackboneError, match="no-such"),
    ):
        apart.facts()


@pytest.mark.parametrize("seconds", [0.2, 2.5])
def test_ctrl_c_before_anything_has_started(seconds: float) -> None:
    """While Python imports torch, and while the rest is imported or options are checked."""
    command = [sys.executable, "-m", "search.run", "--dry-run", "--name", "stopped"]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE)
    deadline = time.monotonic() + seconds
    while (
        time.monotonic() < deadline
        or b"search" not in Path(f"/proc/{program.pid}/cmdline").read_bytes()
    ):
        time.sleep(0.01)
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=60)
    if seconds < 1.0 and "Traceback" in said:
        assert "search" not in said.split("File")[-1]  # Python itself was still starting
        return
    assert program.returncode == 130, said
    assert said.startswith("Stopped")
    assert len(said.splitlines()) == 1
    assert not Path("sweeps").exists()
