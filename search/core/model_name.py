"""The names that sweeps may have, and those that MLflow's model registry accepts."""

from __future__ import annotations

import posixpath
import re

_MODEL_NAME = 256  # characters that the registry's tables keep


def sweep_name_problem(name: str) -> str:
    """Why a sweep cannot have this name, to follow the option's name; empty if it can."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return ""
    return (
        "must be letters, digits, '.', '_' and '-' (at most 100, the first a letter or digit), "
        f"got '{name}'."
    )


def model_name_problem(name: str) -> str:
    """Why MLflow's model registry would refuse this name; empty if it would not."""
    if (
        name.strip()
        and not set(name) & {"/", ":"}
        and posixpath.normpath(name) == name
        and not name.startswith("..")
        and name != "."
        and len(name) <= _MODEL_NAME
        and name.isprintable()
        and not {"'", '"'} <= set(name)  # no query could ask for it
    ):
        return ""
    return (
        f"The name of a registered model must be up to {_MODEL_NAME} characters without '/' and "
        f"':', and not '.' or '..', got '{name}': e.g. --register digits-rmt."
    )
