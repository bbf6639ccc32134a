"""The benchmark of results of mask sweeps, with two trials."""

from __future__ import annotations

from benchmarks.mask_results import judge


def test_every_kind_of_result_is_judged() -> None:
    found = judge("digits", 1, 1, trials=2)
    assert found["paper"] == found["zero-shot"]  # it cannot flip a bit
    assert found["by likelihood"] <= found["by test"]
    assert all(0 <= value <= 100 for value in found.values())
    assert {"soup", "majority", "pool"} < found.keys()
