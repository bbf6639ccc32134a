"""Published numbers, and which settings they are comparable with."""

from __future__ import annotations

import dataclasses

import pytest

from search.evaluation.record import Score
from search.reporting.accuracy import accuracy_section
from search.reporting.published import Published, comparable_rows, published
from tests.search.reporting.made import sweep_of
from trainables.data.benchmarks.layouts import ALL11
from trainables.trial import TaskSpec


def test_a_number_in_several_tables_is_one_row() -> None:
    """TaskRes on ImageNet is in the tables of all data sets, of its variants and of its shifts."""
    found = [row for row in published() if row.part == "test" and "imagenet" in row.values]
    keys = [(row.method, row.backbone, row.shots) for row in found]
    assert len({*keys}) == len(keys)
    taskres = {row.shots: row.source for row in found if row.method == "TaskRes"}
    assert {taskres[shots] for shots in (1, 2, 4, 8)} == {"TaskRes, table 8"}
    whole = {(row.method, row.shots) for row in found if {*row.values} == {*ALL11}}
    masks = ("zero-shot CLIP", 0), ("R-AMT", 16), ("R-MMT", 16), ("R-PMT", 16)
    assert whole == {("TaskRes", 1), ("TaskRes", 16), *masks}


def test_the_average_is_over_exactly_the_data_sets_asked_for() -> None:
    (row,) = (r for r in published() if (r.method, r.shots, r.part) == ("TaskRes", 2, "test"))
    assert row.mean(["imagenet"]) == 62.17
    assert row.mean(ALL11) == 67.02
    assert row.mean(ALL11[:2]) is None
    (row,) = (r for r in published() if r.method == "TaskRes" and "dtd" in r.values and r.shots > 1)
    assert row.mean(["dtd", "eurosat"]) == pytest.approx((67.57 + 82.57) / 2)


def score(dataset: str, shots: int) -> Score:
    return Score("winner", (0.7, 0.8), dataset, shots, dataset, "test", 100)


def rows_for(backbone: str, shots: int, draws: str = "coop", name: str = "dtd") -> list[Published]:
    task = TaskSpec((name,), backbone, (shots,), (1, 2, 3), draws=draws)
    return comparable_rows(task, [score(name, shots)])


def test_published_numbers_stand_beside_the_same_setting_only() -> None:
    assert [r.method for r in rows_for("RN50", 16)] == ["TaskRes"]
    assert [r.method for r in rows_for("RN50:openai", 1)] == ["TaskRes"]
    methods = ["zero-shot CLIP", "R-AMT", "R-MMT", "R-PMT"]
    assert [r.method for r in rows_for("ViT-B-16:openai", 16)] == methods
    assert [r.method for r in rows_for("ViT-B-16", 4)] == ["zero-shot CLIP"]
    assert rows_for("RN50", 4) == []
    assert [r.shots for r in rows_for("RN50", 4, name="imagenet")] == [4, 4, 4]
    assert rows_for("RN50", 16, draws="seeded") == []
    assert rows_for("RN50", 16, name="digits") == []
    for other in ("RN50:laion", "RN50:/weights/openai.pt", "ViT-B-32", "tiny"):
        assert rows_for(other, 16) == []
    for made, skip in ((True, False), (False, True)):
        task = TaskSpec(
            *(("dtd",), "RN50", (16,), (1,), "few-shot", "coop"),
            generate_split=made,
            skip_unreadable=skip,
        )
        assert comparable_rows(task, [score("dtd", 16)]) == []
    base = [dataclasses.replace(score("dtd", 16), part="base")]
    assert (
        comparable_rows(TaskSpec(("dtd",), "RN50", (16,), (1,), "base-to-new", "coop"), base) == []
    )


def test_published_averages_from_base_to_new_stand_beside_the_same_eleven_sets() -> None:
    source = sweep_of("x", *((name, 16) for name in ALL11), backbone="ViT-B-16", draws="coop")
    assert source.evaluation is not None
    scores = [dataclasses.replace(s, part="new") for s in source.evaluation.scores]
    evaluation = dataclasses.replace(source.evaluation, scores=tuple(scores))
    section = accuracy_section([dataclasses.replace(source, evaluation=evaluation)])
    assert section is not None
    shown = {row[0]: row[-1] for row in section.tables[0].rows if row[1] != "measured"}
    assert shown == {"zero-shot CLIP": "74.22", "AMT": "69.11", "R-AMT": "72.15"}
    ten = [s for s in scores if s.dataset != "dtd"]
    assert comparable_rows(source.config.task, ten) == []
