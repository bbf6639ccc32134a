"""Published numbers, and which settings they are comparable with."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from search.evaluation.record import Score
from search.evaluation.statistics import harmonic
from search.reporting.accuracy import accuracy_section
from search.reporting.published import Published, comparable_rows, published
from tests.search.reporting.made import sweep_of
from trainables.data.benchmarks.layouts import IMAGENET_SHIFTS
from trainables.trial import TaskSpec

AVERAGES = {
    ("TaskRes", "RN50", 1): 64.04,
    ("TaskRes", "RN50", 16): 75.10,
    ("zero-shot CLIP", "ViT-B-16", 0): 65.23,
    ("R-AMT", "ViT-B-16", 16): 83.96,
    ("R-MMT", "ViT-B-16", 16): 83.39,
    ("R-PMT", "ViT-B-16", 16): 83.96,
}


def test_published_rows_have_the_averages_that_the_papers_print() -> None:
    rows = {(r.method, r.backbone, r.shots): r for r in published() if len(r.values) == 11}
    assert set(rows) == set(AVERAGES)
    for key, average in AVERAGES.items():
        assert statistics.fmean(rows[key].values.values()) == pytest.approx(average, abs=0.006)


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


def test_published_shifts_have_the_averages_that_the_paper_prints() -> None:
    averages = {
        **{("TaskRes", "RN50"): 43.95, ("TaskRes", "RN101"): 49.79},
        **{("TaskRes", "ViT-B-32"): 50.62, ("TaskRes", "ViT-B-16"): 60.63},
        ("TaskRes, enhanced base", "RN50"): 42.77,
        ("TaskRes, enhanced base", "ViT-B-16"): 59.49,
    }
    rows = {
        (r.method, r.backbone): r for r in published() if r.part == "shift" and len(r.values) == 4
    }
    assert set(rows) == set(averages)
    for key, average in averages.items():
        assert rows[key].mean(IMAGENET_SHIFTS) == pytest.approx(average, abs=0.006)


def test_published_averages_from_base_to_new_stand_beside_the_same_eleven_sets() -> None:
    eleven = next(tuple(row.values) for row in published() if len(row.values) == 11)
    halves = {(row.method, row.part): row.average for row in published() if row.average}
    for method, printed in {"zero-shot CLIP": 71.70, "AMT": 76.70, "R-AMT": 78.35}.items():
        found = harmonic(halves[method, "base"], halves[method, "new"])
        assert found == pytest.approx(printed, abs=0.006)
    source = sweep_of("x", *((name, 16) for name in eleven), backbone="ViT-B-16", draws="coop")
    assert source.evaluation is not None
    scores = [dataclasses.replace(s, part="new") for s in source.evaluation.scores]
    evaluation = dataclasses.replace(source.evaluation, scores=tuple(scores))
    section = accuracy_section([dataclasses.replace(source, evaluation=evaluation)])
    assert section is not None
    shown = {row[0]: row[-1] for row in section.tables[0].rows if row[1] != "measured"}
    assert shown == {"zero-shot CLIP": "74.22", "AMT": "69.11", "R-AMT": "72.15"}
    ten = [s for s in scores if s.dataset != "dtd"]
    assert comparable_rows(source.config.task, ten) == []
