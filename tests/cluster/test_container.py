"""The container image: its file fits the project, and Docker builds it where it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "Dockerfile"
TEXT = FILE.read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_it_copies_what_an_installation_needs_and_nothing_is_ignored() -> None:
    copied = {
        word for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.MULTILINE) for word in line.split()
    }
    packages = {"search", "spaces", "trainables"}
    project = PROJECT["project"]
    assert copied == {*packages, "pyproject.toml", "constraints.txt", project["readme"], "LICENSE"}
    assert project["license-files"] == ["LICENSE"]
    includes = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in includes} == packages
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} == copied


def test_its_extras_python_and_entry_point_exist() -> None:
    project = PROJECT["project"]
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", TEXT)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (python,) = re.findall(r"^FROM python:3\.(\d+)-slim$", TEXT, re.MULTILINE)
    assert project["requires-python"] == ">=3.11,<3.14"
    assert 11 <= int(python) < 14
    (program,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', TEXT, re.MULTILINE)
    assert program in project["scripts"]
    assert "USER search" in TEXT  # not root


def _has_docker() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not _has_docker(), reason="Docker does not run here")
def test_docker_builds_it(tmp_path: Path) -> None:
    build = f"docker build --file {FILE} --tag few-shot-search-test {ROOT}"
    subprocess.run(build.split(), check=True)
    (tmp_path / "sweeps").mkdir(mode=0o777)
    volume = f"--volume {tmp_path}/sweeps:/home/search/sweeps"
    options = "run --space taskres --trials 2 --shots 2 --seeds 1 --eval-seeds 1 --name s"
    sweep = f"docker run --rm --shm-size 2g {volume} few-shot-search-test {options}"
    done = subprocess.run(sweep.split(), capture_output=True, text=True, check=False)
    assert "Trials: 2 complete" in done.stdout, done.stdout + done.stderr
