"""The version ranges in pyproject.toml, and the exact versions that `.ci/venv` installs."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_dependencies_are_ranges() -> None:
    """Ranges are wide, because users have their own CUDA build of torch, Ray cluster and MLflow
    server."""
    exact = [str(r) for r in requirements() if any(s.operator == "==" for s in r.specifier)]
    assert exact == []


def test_every_dependency_has_a_lowest_version() -> None:
    without = [
        str(r)
        for r in map(Requirement, PROJECT["dependencies"])
        if not any(s.operator == ">=" for s in r.specifier)
    ]
    assert without == []


def test_the_exact_set_is_within_the_ranges() -> None:
    exact = constraints()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in exact, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(exact[name]), f"{requirement}: {exact[name]}"
