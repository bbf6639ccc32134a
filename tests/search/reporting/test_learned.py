"""What the winner has learned: residuals and masks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.reporting import learned
from search.reporting.artifacts import Learned
from search.reporting.learned import MAGNITUDES, Measured, dropped_iou, layer_sparsity
from tests.search.reporting.made import sweep_of
from trainables.trial import Episode


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"score_change": '{"a.weight": 0.25}'}, {"a.weight": 0.25}),
        ({}, {}),
        ({"score_change": "["}, {}),
        ({"score_change": "[1]"}, {}),
        ({"score_change": '{"a": null}'}, {}),
    ],
)
def test_the_change_of_scores_is_read_where_it_was_kept(
    told: dict[str, str], found: dict[str, float]
) -> None:
    assert Learned("s", Episode("digits", 4, 1), {}, told).score_change() == found


MASKS = st.lists(st.booleans(), min_size=6, max_size=6)


@given(MASKS, MASKS)
def test_overlap_is_that_of_the_dropped_sets(first: list[bool], second: list[bool]) -> None:
    dropped = [{i for i, kept in enumerate(mask) if not kept} for mask in (first, second)]
    a, b = ({"x": torch.tensor(m[:4]), "y": torch.tensor(m[4:])} for m in (first, second))
    union = dropped[0] | dropped[1]
    expected = len(dropped[0] & dropped[1]) / len(union) if union else None
    assert dropped_iou(a, b) == expected
    assert dropped_iou(b, a) == expected
    shares = layer_sparsity(a)
    assert shares["x"] == pytest.approx(1 - sum(first[:4]) / 4)


def test_masks_of_other_weights_have_no_overlap() -> None:
    mask = torch.zeros(4, dtype=torch.bool)
    assert dropped_iou({"x": mask}, {"y": mask}) is None
    assert dropped_iou({"x": mask}, {"x": mask[:2]}) is None


def test_the_magnitudes_are_what_they_are_called() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 12.0]])
    assert MAGNITUDES["mean |x|"](x) == pytest.approx((3 + 4 + 0 + 12) / 4)
    assert MAGNITUDES["mean |x_k|_2"](x) == pytest.approx((5 + 12) / 2)


def test_data_sets_have_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masked(Learned):
        def masks(self) -> dict[str, torch.Tensor]:
            return {"w": torch.tensor([True, False])}

    cells = [Episode("folder:/data/x/birds", shots, 1) for shots in (1, 4)]
    sizes = {"mean |x_k|_2": 1.0}
    measured = [Measured("s", c.dataset, c.shots, 9, 0.5, sizes, 0.1) for c in cells]
    monkeypatch.setattr(learned, "measure", lambda _: measured)
    monkeypatch.setattr(learned, "winners", lambda _: [Masked("s", c, {}, {}) for c in cells])
    source = dataclasses.replace(sweep_of("s"), results={})
    for section in (learned.residual_section([source]), learned.mask_section([source])):
        assert section is not None
        texts = [str(figure.to_dict()) for figure in section.figures]
        texts += [table.csv() for table in section.tables]
        assert any("birds" in text for text in texts)
        assert not any("/data" in text for text in texts)
