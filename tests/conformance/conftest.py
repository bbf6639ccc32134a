"""Deselects methods with a backbone that they do not support."""

from typing import Any

import pytest
from method_cases import ONLY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _fits(getattr(item, "callspec", None))]


def _fits(spec: Any) -> bool:
    if spec is None or "world" not in spec.params:
        return True
    case = spec.params.get("case")
    name = case[0] if case else spec.params.get("name", "")
    return ONLY.get(name, spec.params["world"]) == spec.params["world"]
