"""Deselects methods with a backbone that they do not support or, on features, never run."""

from typing import Any

import pytest
from method_cases import ONLY

from trainables.methods.registry import METHODS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _fits(getattr(item, "callspec", None))]


def _fits(spec: Any) -> bool:
    if spec is None or "world" not in spec.params:
        return True
    case = spec.params.get("case")
    name = case[0] if case else spec.params.get("name", "")
    world = "vit" if case and METHODS[name].input_kind == "features" else spec.params["world"]
    return ONLY.get(name, world) == spec.params["world"]
