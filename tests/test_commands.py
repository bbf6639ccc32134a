"""Every command in the documentation is parsed, and run as written.

The commands of the README and the guide run in order in one folder, exactly as printed. Those that
cannot be run here are listed with the reason; a new command that is in neither list fails.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from search.completion import COMMANDS
from search.completion import build_parser as completion_parser
from search.core.problems import UsageError
from tests.servers import Postgresql, Program, postgresql_programs, s3_server
from tests.trainables.data.trees import dtd, eurosat

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
PARSERS = {**COMMANDS, "search.completion": completion_parser}


def shown(text: str) -> Iterator[str]:
    """The commands of a page's shell blocks, one per line, without `bash .ci/venv`."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            yield line.strip().removeprefix("bash .ci/venv ")


def mentioned(text: str) -> Iterator[str]:
    """Commands in sentences and in the examples of `--help`."""
    for command in re.findall(r"`(?:bash \.ci/venv )?((?:python -m|pip install) [^`]+)`", text):
        if "COMMAND" not in command:  # COMMAND is a placeholder
            yield command
    for example in re.findall(r"^  (python -m search\..*)$", text, re.MULTILINE):
        yield re.split(r" {2,}", example)[0]


SHOWN = tuple(dict.fromkeys(c for text in TEXTS.values() for c in shown(text)))
MENTIONED = tuple(dict.fromkeys(c for text in TEXTS.values() for c in mentioned(text)))


@dataclass(frozen=True)
class Run:
    """How a command is run here."""

    says: str
    """Pattern that its output or its page must contain, as the documentation promises."""
    options: str = ""
    """What is appended to the command, if it cannot be run as printed."""
    page: str = ""
    """Address of the page that it serves until it is stopped."""


RUN = "python -m search.run"
OWN = f"{RUN} --space taskres --dataset folder:example/labelled"
README_TOUR = {
    f"{RUN} --space taskres --shots 4 --name first --dry-run": Run("Estimate of time"),
    f"{RUN} --space taskres --shots 4 --name first": Run("Trials: 40 complete"),
    "python -m search.list": Run(r"first +taskres .* finished"),
    "python -m search.status first": Run("Next:"),
    "python -m search.report first": Run(r"Report: .*report\.html"),
    "python -m search.dashboard first": Run("first", page="http://127.0.0.1:8008"),
    "mlflow ui --backend-store-uri sqlite:///sweeps/mlflow.db": Run(
        "MLflow", page="http://127.0.0.1:5000"
    ),
    f"{RUN} --resume first --trials 60": Run("Trials: 60 complete"),
    "python -m search.status first --errors": Run("No trial of first has failed"),
    "python -m search.export first --format torch": Run("Verified in a new process"),
    "python -m search.export first --format onnx": Run("Verified in a new process"),
    "python -m search.export first --register digits-taskres": Run(
        "Registered as version 1 of digits-taskres"
    ),
    "python -m search.example example": Run("Wrote 400 labelled images of 10 classes"),
    f"{OWN} --name own": Run("the winner"),
    "python -m search.predict own example/new": Run(r"seven\.png +\w+ \d+\.\d%"),
}
"""The README's tour, run exactly as printed and in this order."""
GUIDE_TOUR = {
    f"{RUN} --space rmt --dataset digits-rotated --name turned": Run("the winner"),
    "python -m search.report turned --compare first": Run(r"Report: .*turned"),
    "python -m search.predict own example/new --top 3 --output predictions.csv": Run(
        "10 images classified into 10 classes"
    ),
    f"{RUN} --space taskres --init-from turned --name on-masks": Run("the winner"),
    f"{RUN} --space rmt+taskres --trials 24 --name both": Run("the winner"),
    f"{OWN} --dry-run": Run("Estimate of time"),
    f"{OWN} --protocol base-to-new": Run("harmonic mean of the averages"),
    f"{OWN} --test-folds 5 --shots all --name checked": Run("400 images, each tested once"),
    "python -m search.doctor --data ~/data --dataset dtd": Run(r"\ndtd +look"),
    # The miniatures have two images in their smallest class.
    f"{RUN} --space taskres --data ~/data --dataset dtd,eurosat --shots 1,4,16": Run(
        "the winner", "--shots 1,2"
    ),
    "python -m search.spaces": Run("rmt-budget"),
    "python -m search.spaces rmt+taskres": Run("taskres: searched"),
    f"{RUN} --space taskres --set alpha=0.7 --range lr=1e-3:1e-1:log --dry-run": Run(
        "0.001 to 0.1, logarithmic"
    ),
    f"{RUN} --space taskres --grid alpha=0.1,0.5,1 --grid residual=text,both --name grid": Run(
        r"Trials: 6 complete"
    ),
    "python -m search.sync first --rebuild": Run("MLflow holds 60 trials of sweep first"),
    "python -m search.annotate first --note baseline --tag team=vision": Run("tags: team=vision"),
    "python -m search.rename turned rotated": Run("Renamed sweep turned to rotated, and"),
    "python -m search.archive both --remove": Run("equal to the folder"),
    "python -m search.delete on-masks": Run("Deleted sweep on-masks", "--yes"),
    'eval "$(python -m search.completion bash)"': Run("_search_python", "; complete -p python"),
    "python -m search.reproduce taskres/table-2 --embedded --shots 1": Run("phi.t. +measured"),
}
"""The commands of the guide and of other pages, after those of the README."""
TOUR = README_TOUR | GUIDE_TOUR

TEAM = f"{RUN} --space rmt --storage s3://BUCKET/sweeps --study-storage postgresql://USER@HOST/DATABASE"

_TESTS = "it runs tests"
_FIELD = "it needs the field's data sets; tests/search/reproduction runs it on miniatures"
_SHELL = "tests/search/test_completion runs it in that shell"
_SERVERS = "tests/cluster/test_servers runs them against servers on this machine"
_IMAGE = "tests/cluster/test_container builds and runs the image where Docker runs"
_CLOUD = "it needs an account of a cloud; the files are checked in tests/cluster"
NOT_RUN = {
    f"{RUN} --space rmt": "CI runs it whole and checks its figures",
    "python -m pytest": _TESTS,
    "python -m pytest tests/conformance -k taskres": _TESTS,
    "python -m pytest tests/conformance tests/spaces -k logit-bias": "see tests/test_contributing",
    f"{RUN} --space logit-bias": "see tests/test_contributing",
    f"{RUN} --plugin my_methods.py --space logit-bias --dataset my-digits --name mine": "see "
    "tests/test_plugins",
    "FEWSHOT_PLUGINS=my_methods.py python -m pytest tests/conformance tests/spaces -k logit-bias": (
        "see tests/test_plugins"
    ),
    "bash .ci/run": _TESTS,
    'eval "$(python -m search.completion zsh)"': _SHELL,
    "python -m search.completion fish | source": _SHELL,
    "ruff check .": "CI runs it",
    "ruff format .": "CI runs it with --check",
    "mypy": "CI runs it",
    "pip install -e .": "`.ci/venv` installs the same way",
    f"{RUN} --space rmt --backbone ViT-B-16 --gpus-per-trial 0.25": "it needs a GPU and downloads "
    "weights; tests/search/test_gpu.py",
    "export MLFLOW_TRACKING_URI=https://mlflow.example.org MLFLOW_EXPERIMENT_NAME=parts": _SERVERS,
    "export MLFLOW_TRACKING_USERNAME=you MLFLOW_TRACKING_PASSWORD=...": _SERVERS,
    "export PGPASSWORD=...": _SERVERS,
    "python -m search.doctor": _SERVERS,
    f"{RUN} --space taskres --study-storage postgresql://you@db.example.org/optuna": _SERVERS,
    "optuna-dashboard postgresql+psycopg://you@db.example.org/optuna": _SERVERS,
    "mlflow server --backend-store-uri postgresql+psycopg://you@db.example.org/mlflow "
    "--artifacts-destination s3://BUCKET/mlflow": _SERVERS,
    "sbatch cluster/slurm.sh --space rmt --backbone ViT-B-16 --name mine --gpus-per-trial 0.25": (
        "tests/cluster/test_slurm runs the script"
    ),
    "docker build --file cluster/Dockerfile --tag few-shot-search .": _IMAGE,
    'docker run --rm --shm-size 8g --volume "$PWD/sweeps:/home/search/sweeps" few-shot-search run '
    "--space rmt": _IMAGE,
    'docker run --rm --volume "$PWD/sweeps:/home/search/sweeps" few-shot-search list': _IMAGE,
    "python -m search.reproduce taskres/table-8 --data /datasets --published-draws": _FIELD,
    "python -m search.reproduce rmt/table-17 --data /datasets --only dtd,eurosat --shots 1,4 "
    "--seeds 1": _FIELD,
    "python -m search.reproduce rmt/table-7 --data /datasets --backbone RN50:weights.pt,ViT-B-16 "
    "--address auto": _FIELD,
    f"{RUN} --address auto --storage s3://BUCKET/sweeps --data /datasets --dataset oxford_pets "
    "--space rmt --backbone ViT-B-16 --device cuda --gpus-per-trial 0.25": _CLOUD,
    "ray up cluster.yaml": _CLOUD,
    f"ray exec cluster.yaml '{RUN} --space rmt --address auto --storage $STORAGE/sweeps "
    "--device cuda --gpus-per-trial 0.25 --max-concurrent 16'": _CLOUD,
}
"""Command -> why it is not run here."""


def parse(command: str) -> None:
    """Parse a command with `argparse`; raises `UsageError` if that fails."""
    inner = re.search(r"python -m (search\.\w+) ?([^'\"\)|]*)", command)
    if inner is None or "--help" in command:
        return
    arguments = shlex.split(inner[2])
    # In a sentence, a command that takes a sweep's name may be mentioned without arguments.
    if arguments or inner[1] in ("search.run", "search.list", "search.doctor"):
        PARSERS[inner[1]]().parse_args(arguments)


def test_there_are_commands() -> None:
    assert len(SHOWN) > 25
    assert len(MENTIONED) > 20
    assert {word for c in SHOWN for word in re.findall(r"-m (search\.\w+)", c)} == set(PARSERS)


def test_every_command_is_run_or_listed_with_a_reason() -> None:
    assert set(SHOWN) == {*TOUR, TEAM, *NOT_RUN}


@pytest.mark.parametrize("command", SHOWN + MENTIONED)
def test_it_is_understood(command: str) -> None:
    parse(command)
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extra = re.search(r"\[(\w+)\]", words[-1])
        assert extra is None or extra[1] in project["optional-dependencies"]
    if "pytest" in words and "-m" in words[3:]:
        settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert f'"{words[words.index("-m", 3) + 1]}: ' in settings


def test_a_wrong_option_is_not_understood() -> None:
    with pytest.raises(UsageError, match="Unrecognized arguments"):
        parse("python -m search.run --spaces rmt")


# --- run -----------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home folder with miniature data sets."""
    dtd(tmp_path / "data")
    eurosat(tmp_path / "data")
    return tmp_path


def surroundings(home: Path) -> dict[str, str]:
    """An activated environment in which `~` is that folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k not in ("FEWSHOT_DATA", "MLFLOW_TRACKING_URI")}
    return kept | {"HOME": str(home), "PATH": path, "VIRTUAL_ENV": sys.prefix, "COLUMNS": "160"}


def run(command: str, expected: Run, home: Path) -> None:
    """Run a command and check its effect and output."""
    done = subprocess.run(
        ["bash", "-c", f"{command} {expected.options}"],
        cwd=home,
        env=surroundings(home),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}\n{said}"
    assert "Traceback" not in said, f"{command}\n{said}"
    assert re.search(expected.says, said), f"{command}\n{said}"


def serve(command: str, expected: Run, home: Path) -> None:
    """Run a server command until it answers at the documented address, then stop it."""
    log = home / "page.log"
    program = Program(["bash", "-c", f"cd '{home}'; exec {command}"], log, surroundings(home))
    try:
        deadline = time.monotonic() + 120
        while program.code is None and time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(expected.page, timeout=5) as page:
                assert expected.says in page.read().decode()
                return
            time.sleep(0.5)
        raise AssertionError(program.output())
    finally:
        program.kill()


def take_tour(tour: dict[str, Run], home: Path) -> None:
    """Run commands in order, and print how long each took."""
    for command, expected in tour.items():
        start = time.monotonic()
        if expected.page:
            serve(command, expected, home)
        else:
            run(command, expected, home)
        print(f"{time.monotonic() - start:6.1f} s  {command}", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_tour(home: Path) -> None:
    """Run the commands of the README and then those of the guide; a dry run leaves nothing."""
    (dry, expected), *rest = README_TOUR.items()
    run(dry, expected, home)
    assert not (home / "sweeps").exists()
    take_tour(dict(rest), home)
    assert (home / "exports").is_dir()
    take_tour(GUIDE_TOUR, home)


@pytest.mark.slow
@pytest.mark.skipif(postgresql_programs() is None, reason="PostgreSQL is not installed")
@pytest.mark.timeout(600)
def test_a_bucket_and_a_database(home: Path) -> None:
    """Runs with local servers in place of BUCKET and HOST."""
    database = Postgresql(home / "postgresql.log")
    try:
        database.wait()
        with s3_server(home) as bucket:
            command = TEAM.replace("s3://BUCKET/sweeps", shlex.quote(bucket.location("sweeps")))
            command = command.replace("postgresql://USER@HOST/DATABASE", database.uri)
            quick = "--trials 2 --seeds 1 --eval-seeds 1 --no-report --shots 2"
            run(command, Run(r"the winner +\d", quick), home)
    finally:
        database.remove()
