"""Error messages for users."""

from __future__ import annotations

import pytest

from search.core.problems import EvaluationError, StoppedError


@pytest.mark.parametrize("kind", [EvaluationError, StoppedError])
def test_a_reason_stands_within_a_sentence(kind: type[Exception]) -> None:
    for reason in ("grant access.", "grant access"):
        assert f"It failed: {kind(reason)}. Try again." == "It failed: grant access. Try again."
