"""Test images in a report: many classes, several data sets, names with markup."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.core.config import SweepConfig
from search.core.results import Result
from search.core.sweep_folder import SweepRecord
from search.evaluation.examples import EXAMPLES, Example, encode_examples
from search.evaluation.predictions import (
    PREDICTIONS,
    ModelPredictions,
    PredictionTable,
    checksum,
    encode_predictions,
)
from search.evaluation.record import Evaluation, Label, Part, Score
from search.reporting.document import Section
from search.reporting.page import render
from search.reporting.predictions import (
    BINS,
    MOST_CLASSES,
    episodes_of,
    prediction_sections,
    reliability,
    shown_episode,
)
from search.reporting.source import Source
from trainables.core.storage import LocalStorage
from trainables.trial import TaskSpec

SEEDS = (2, 3)
LABELS: tuple[Label, ...] = ("zero-shot", "paper", "winner")


def sheet(
    target: str, part: Part, classes: int, models: Sequence[tuple[str, int]]
) -> PredictionTable:
    """Twenty images per class except the last, which has none; random predictions that improve with
    each label."""
    rng = np.random.default_rng(classes)
    truth = np.repeat(np.arange(classes - 1), 20).astype(np.uint16)

    def answers(label: Label, dataset: str, shots: int, seed: int) -> ModelPredictions:
        known = rng.random(len(truth)) < 0.4 + 0.2 * LABELS.index(label)
        said = np.where(known, truth, rng.integers(0, classes, len(truth))).astype(np.uint16)
        return ModelPredictions(
            label, dataset, shots, seed, said, rng.random(len(truth), np.float32)
        )

    given = (answers(label, *m, seed) for m in models for seed in SEEDS for label in LABELS)
    names = tuple(f"<i>{i}</i>" for i in range(classes))
    images = np.arange(len(truth), dtype=np.int32)
    return PredictionTable(target, part, names, images, (), truth, tuple(given))


def judged(tmp_path: Path, *sheets: PredictionTable, examples: Sequence[Example] = ()) -> Source:
    """A sweep of one trial, judged on these."""
    scores = tuple(
        Score(label, (0.5, 0.5), "a", 4, s.target, s.part, len(s.truth))
        for s in sheets
        for label in LABELS
    )
    storage = LocalStorage(tmp_path)
    files = {PREDICTIONS: encode_predictions(sheets), EXAMPLES: encode_examples(examples)}
    for name, data in files.items():
        storage.write(name, data)
    checksums = {name: checksum(data) for name, data in files.items()}
    found = Evaluation(0, 0.5, SEEDS, "few-shot", scores, checksums=checksums)
    trial = Result(0, "COMPLETE", 0.5, (0.5,), {}, {}, {}, {}, {}, 1.0, 0.0, 1.0, "host")
    config = SweepConfig(name="x", task=TaskSpec(("a",), "tiny", (4,), (1,)))
    return Source(storage, SweepRecord("id", config, {}), config, {0: trial}, found, (), None)


def sections_of(source: Source) -> dict[str, Section]:
    return {section.name: section for section in prediction_sections(source)}


def test_several_episodes_are_rows_and_one_is_drawn(tmp_path: Path) -> None:
    models = (("folder:/x/a", 1), ("folder:/x/a", 4))
    source = judged(
        tmp_path, sheet("folder:/x/a", "base", 4, models), sheet("folder:/x/a", "new", 3, models)
    )
    found = episodes_of(source.sheets)
    names = [f"a, {half} classes, {s}" for half in ("base", "new") for s in ("1 shot", "4 shots")]
    assert [episode.name for episode in found] == names
    assert shown_episode(found).name == "a, base classes, 4 shots"
    sections = sections_of(source)
    changes, calibration = sections["changes"], sections["calibration"]
    assert [row[0] for row in changes.tables[0].rows] == [name for name in names for _ in range(2)]
    assert len(calibration.tables[0].rows) == 4 * 3
    assert any("The figures show a, base classes, 4 shots" in note for note in calibration.notes)
    assert "There are no pictures" in changes.notes[1]
    assert len(sections["classes"].files[0].rows) == 2 * 4 + 2 * 3


def test_many_classes_show_their_ends_and_have_a_file(tmp_path: Path) -> None:
    source = judged(tmp_path, sheet("a", "test", 100, [("a", 4)]))
    classes = sections_of(source)["classes"]
    (shown, confusion), (whole,) = classes.tables, classes.files
    assert 20 == len(shown.rows) < MOST_CLASSES
    assert len(whole.rows) == 100
    gains = [row[-1] for row in whole.rows]
    assert gains[-1] == "-"  # the class that has no images
    ends = [*whole.rows[:10], *whole.rows[89:99]]
    assert [row[0] for row in shown.rows] == [row[1] for row in ends]
    assert [figure.name for figure in classes.figures] == ["classes"]
    assert len(confusion.rows) == 15
    own = source.sheets[0]
    for row in whole.rows[:99]:
        of_class = own.truth == own.classes.index(row[1])
        for place, label in enumerate(LABELS):
            draws = [a.prediction[of_class] for a in own.answers if a.label == label]
            share = statistics.fmean(float((d == own.truth[of_class]).mean()) for d in draws)
            assert row[3 + place] == f"{100 * share:.2f}"


def test_few_classes_have_a_matrix_with_whole_names(tmp_path: Path) -> None:
    source = judged(tmp_path, sheet("a", "test", 5, [("a", 4)]))
    (_, confusion) = sections_of(source)["classes"].figures
    assert confusion.name == "confusion"
    names = confusion.layout["xaxis"]["ticktext"]
    assert names == [f"&lt;i&gt;{i}&lt;/i&gt;" for i in range(5)]
    (matrix,) = confusion.data
    assert [round(sum(v or 0 for v in row)) for row in matrix["z"]] == [100] * 4 + [0]


@pytest.mark.parametrize("draws", [1, 2])
def test_counts_of_one_draw_are_whole_numbers(tmp_path: Path, draws: int) -> None:
    every = sheet("a", "test", 5, [("a", 4)])
    own = tuple(a for a in every.answers if a.seed in SEEDS[:draws])
    sections = sections_of(judged(tmp_path, dataclasses.replace(every, answers=own)))
    rows = [*sections["changes"].tables[0].rows, *sections["classes"].tables[1].rows]
    assert all((draws == 1) == cell.isdecimal() for row in rows for cell in row[3:5])


def test_names_are_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    example = Example("a", "test", 4, 2, f'{evil}".jpg', evil, "b", evil, b"png")
    source = judged(tmp_path, sheet("a", "test", 5, [("a", 4)]), examples=[example])
    text = render([source], prediction_sections(source))
    assert evil not in text
    assert "<i>0</i>" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;i&gt;0&lt;/i&gt;" in text
    assert 'alt="&lt;script&gt;alert(1)&lt;/script&gt;&#34;.jpg"' in text


def test_without_predictions_there_is_a_reason(tmp_path: Path) -> None:
    source = judged(tmp_path, sheet("a", "test", 5, [("a", 4)]))
    assert "images" not in sections_of(source)
    (tmp_path / "predictions.arrow").unlink()
    sections = sections_of(dataclasses.replace(source))
    assert list(sections) == ["images"]
    assert "'predictions.arrow' is missing" in sections["images"].notes[0]
    assert sections_of(dataclasses.replace(source, evaluation=None)) == {}


FRACTIONS = st.one_of(st.integers(0, BINS).map(lambda m: m / BINS), st.floats(0, 1, width=32))


@given(st.lists(st.tuples(FRACTIONS, st.booleans()), min_size=1, max_size=30))
def test_the_calibration_error_is_that_of_the_paper(rows: list[tuple[float, bool]]) -> None:
    confidence = np.array([c for c, _ in rows], np.float32)
    right = np.array([r for _, r in rows])
    found = reliability(confidence, right)
    error = 0.0
    for m in range(BINS):
        lowest = -1 if m == 0 else m / BINS  # nothing is sure by 0, and the first bin has all
        mine = [i for i, c in enumerate(confidence.tolist()) if lowest < c <= (m + 1) / BINS]
        assert found.images[m] == len(mine)
        if mine:
            accuracy = statistics.fmean(float(right[i]) for i in mine)
            sure = statistics.fmean(float(confidence[i]) for i in mine)
            error += len(mine) / len(rows) * abs(accuracy - sure)
    assert found.error == pytest.approx(error, abs=1e-12)
