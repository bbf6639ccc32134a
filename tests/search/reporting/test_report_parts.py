"""The parts of a report: what is computed, and what a page, a table and a figure make of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
import statistics
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, distribution_to_json
from PIL import Image

from search.core.config import SweepConfig
from search.core.results import Result, State
from search.evaluation.record import Evaluation, Label, Score
from search.evaluation.statistics import harmonic
from search.options import configure
from search.reporting import mask_figures, residuals
from search.reporting.artifacts import Learned
from search.reporting.dependence import importances, varied
from search.reporting.figures import COLOURS, MARKERS, draw, logarithmic, look, plain
from search.reporting.history import history_section, survivors
from search.reporting.mask_figures import dropped_iou, layer_sparsity
from search.reporting.page import notices
from search.reporting.provenance import command
from search.reporting.published import PUBLISHED, Published, comparable_rows
from search.reporting.residuals import MAGNITUDES, Measured
from search.reporting.shots import shots_section
from search.reporting.source import Source
from search.reporting.tables import Table, mean_of, percent
from trainables.core.storage import LocalStorage
from trainables.core.text import printable
from trainables.data.benchmarks.layouts import IMAGENET_SHIFTS
from trainables.trial import Episode, TaskSpec


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"score_change": '{"a.weight": 0.25}'}, {"a.weight": 0.25}),
        ({}, None),
        ({"score_change": "["}, None),
        ({"score_change": "[1]"}, None),
        ({"score_change": '{"a": null}'}, None),
    ],
)
def test_the_change_of_scores_is_read_where_it_was_kept(
    told: dict[str, str], found: dict[str, float] | None
) -> None:
    assert Learned(Episode("digits", 4, 1), {}, told, True).score_change() == found


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


def result(
    number: int, values: tuple[float, ...], state: State = "COMPLETE", **params: Any
) -> Result:
    share = distribution_to_json(FloatDistribution(0.0, 1.0))
    return Result(
        *(number, state, values[-1] if values else None, values, {}, params),
        dict.fromkeys(params, share),
        *({}, {}, 1.0, 0.0, 1.0, "host"),
    )


def test_survivors_are_counted_part_by_part() -> None:
    trials = [
        result(0, (0.1, 0.2, 0.3)),
        result(1, (0.1,), "PRUNED"),
        result(2, (0.1, 0.2), "PRUNED"),
        result(3, (), "FAIL"),
    ]
    assert survivors(trials) == [3, 2, 1]
    assert survivors([trials[3]]) == []


def test_importances_see_what_matters() -> None:
    grid = itertools.product(range(6), range(6))
    trials = [
        result(i, (0.1 * a + 0.001 * b,), alpha=a / 6, beta=b / 6, still=0.5)
        for i, (a, b) in enumerate(grid)
    ]
    found = importances(trials)
    assert next(iter(found)) == "alpha"
    assert found["alpha"] > 0.9
    assert set(found) == {"alpha", "beta"} == set(varied(trials))
    assert sum(found.values()) == pytest.approx(1)
    assert importances(trials[:3]) == {}
    assert importances([result(i, (0.5,), alpha=i / 9) for i in range(9)]) == {}


ROWS = st.lists(st.tuples(st.text(), st.text()), max_size=4)


@given(ROWS)
def test_a_csv_is_read_back_as_it_was(rows: list[tuple[str, str]]) -> None:
    """Except for quotes before formulas of a spreadsheet, and escapes of invisible characters."""
    # Line ends of other systems are the one thing that Python's reader unifies.
    rows = [tuple(c.replace("\r", "") for c in row) for row in rows]  # type: ignore[misc]
    text = Table("t", "T", ("a", "b"), tuple(rows)).csv()
    (heading, *read) = csv.reader(io.StringIO(text, newline=""))
    assert heading == ["a", "b"]
    for found, row in zip(read, rows, strict=True):
        assert [cell.removeprefix("'") for cell in found] == [
            printable(cell).removeprefix("'") for cell in row
        ]


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "-0.5;=1"]
)
def test_no_spreadsheet_runs_a_cell(cell: str) -> None:
    (_, (found, *_)) = csv.reader(io.StringIO(Table("t", "T", ("a",), ((cell,),)).csv()))
    assert found == f"'{cell}"


@pytest.mark.parametrize(
    "cell", ["-0.50", "+1.25", "-", "84.13 ± 0.52", "+1.2 [-0.3, +2.7]", "1e-5"]
)
def test_numbers_stay_numbers(cell: str) -> None:
    assert Table("t", "T", ("a",), ((cell,),)).csv() == f"a\n{_quoted(cell)}\n"


def _quoted(cell: str) -> str:
    return f'"{cell}"' if "," in cell else cell


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\u202eb", "\udc80", "nul\0", "\x07"])
def test_control_characters_are_escaped_everywhere(name: str) -> None:
    table = Table("t", name, (name,), ((name,),), name)
    for text in (table.markdown(), table.latex(), table.csv(), plain(name)):
        text.encode()
        assert not set(text) & set("\x1b\u202e\0\x07")
    figure = draw("f", "F", "", lambda axes: axes.set_title(plain(name)))
    assert b"\x1b" not in figure.svg


@given(ROWS)
def test_markdown_keeps_its_columns_whatever_the_names(rows: list[tuple[str, str]]) -> None:
    text = Table("t", "T", ("a", "b"), tuple(rows)).markdown()
    lines = text.partition("\n\n")[2].split("\n")[: 2 + len(rows)]
    for line in lines:
        bars = line.replace("\\\\", "").replace("\\|", "").count("|")
        assert bars == 3
    assert "<" not in text.replace("\\<", "")


def test_latex_escapes_what_it_would_read() -> None:
    table = Table("t", "T", ("a_b", "100 %"), (("x & y", "1 ± 2"), ("$", "\\")))
    text = table.latex()
    assert r"a\_b & 100 \% \\" in text
    assert r"x \& y & 1 $\pm$ 2 \\" in text
    assert r"\$ & \textbackslash{} \\" in text
    assert text.count(r"\begin{tabular}{lr}") == 1


def test_names_are_no_arguments_of_latex_and_no_markup_of_markdown() -> None:
    table = Table("t", "T", ("*h", "n"), (("[a]star", "1"), ("*b", "2"), ("$x$ ~y~ &lt;", "3")))
    rows = [line for line in table.latex().splitlines() if line.endswith(r" \\")]
    assert len(rows) == 4
    assert not any(row.startswith(("*", "[")) for row in rows)
    assert rows[1].removeprefix("{}").startswith("[a]star & ")
    assert r"\$x\$ \~y\~ \&lt;" in table.markdown()


def test_trials_have_whole_numbers() -> None:
    trials = {n: result(n, (0.1 * n,)) for n in range(3)}
    section = history_section(dataclasses.replace(sweep_of("s", ("a", 1)), results=trials))
    svgs = [f.svg.decode() for f in section.figures if f.name in ("history", "times")]
    assert len(svgs) == 2
    for svg in svgs:
        ticks = re.findall(r'<g id="xtick_\d+">.*?<!-- (.*?) -->', svg, re.DOTALL)
        assert {"0", "1", "2"} <= set(ticks)
        assert all(re.fullmatch(r"\d+", tick) for tick in ticks)


def test_means_are_written_in_per_cent() -> None:
    assert percent(0.84125) == "84.12"
    assert percent(None) == "-"
    values = (0.5, 0.7, 0.9)
    assert mean_of(values) == f"70.00 ± {100 * statistics.stdev(values):.2f}"
    assert mean_of((0.5,)) == "50.00"


AVERAGES = {
    ("TaskRes", "RN50", 1): 64.04,
    ("TaskRes", "RN50", 16): 75.10,
    ("zero-shot CLIP", "ViT-B-16", 0): 65.23,
    ("R-AMT", "ViT-B-16", 16): 83.96,
    ("R-MMT", "ViT-B-16", 16): 83.39,
    ("R-PMT", "ViT-B-16", 16): 83.96,
}


def test_published_rows_have_the_averages_that_the_papers_print() -> None:
    rows = {(r.method, r.backbone, r.shots): r for r in PUBLISHED if len(r.values) == 11}
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
        task = TaskSpec(("dtd",), "RN50", (16,), (1,), "few-shot", "coop", made, skip)
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
        (r.method, r.backbone): r for r in PUBLISHED if r.part == "shift" and len(r.values) == 4
    }
    assert set(rows) == set(averages)
    for key, average in averages.items():
        assert rows[key].mean(IMAGENET_SHIFTS) == pytest.approx(average, abs=0.006)


def test_published_averages_from_base_to_new_stand_beside_the_same_eleven_sets() -> None:
    eleven = next(tuple(row.values) for row in PUBLISHED if len(row.values) == 11)
    halves = {(row.method, row.part): row.average for row in PUBLISHED if row.average}
    for method, printed in {"zero-shot CLIP": 71.70, "AMT": 76.70, "R-AMT": 78.35}.items():
        found = harmonic(halves[method, "base"], halves[method, "new"])
        assert found == pytest.approx(printed, abs=0.006)
    source = sweep_of("x", *((name, 16) for name in eleven), backbone="ViT-B-16", draws="coop")
    assert source.evaluation is not None
    scores = [dataclasses.replace(s, part="new") for s in source.evaluation.scores]
    evaluation = dataclasses.replace(source.evaluation, scores=tuple(scores))
    section = shots_section([dataclasses.replace(source, evaluation=evaluation)])
    assert section is not None
    published = {row[0]: row[-1] for row in section.tables[0].rows if row[1] != "measured"}
    assert published == {"zero-shot CLIP": "74.22", "AMT": "69.11", "R-AMT": "72.15"}
    ten = [s for s in scores if s.dataset != "dtd"]
    assert comparable_rows(source.config.task, ten) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--space", "taskres"],
        ["--space", "rmt", "--shots", "1,2", "--seeds", "7", "--protocol", "base-to-new"],
        [
            "--space",
            "taskres",
            "--dataset",
            "digits,folder:/a b",
            "--draws",
            "coop",
            "--generate-split",
        ],
        ["--shots-file", "/the lists/shot_{shots}-seed_{seed}.json"],
        ["--second-objective", "mask/sparsity:max"],
        ["--sampler", "random", "--pruner", "none", "--seed", "3", "--eval-seeds", "2"],
        ["--storage", "/some where", "--trials", "5", "--skip-unreadable"],
    ],
)
def test_the_command_makes_the_same_sweep(options: list[str]) -> None:
    import shlex

    config = configure([*options, "--name", "mine"])
    words = shlex.split(command(config))
    assert words[:3] == ["python", "-m", "search.run"]
    assert configure(words[3:]) == config


def test_a_name_with_dollars_is_no_formula() -> None:
    def paint(axes: Any) -> None:
        axes.scatter([1, 2000], [1, 2], label=plain("$\\frac{$"))
        axes.legend()
        logarithmic(axes, "x")

    figure = draw("f", "F", "c", paint)
    assert figure.png.startswith(b"\x89PNG")
    assert b"<svg" in figure.svg
    assert draw("f", "F", "c", paint).svg == figure.svg


def test_colours_are_told_apart_without_colour() -> None:
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(COLOURS) == len(MARKERS)
    assert len({look(place) for place in range(49)}) == 49


def sweep_of(
    name: str, *judged: tuple[str, int], backbone: str = "tiny", draws: str = "seeded"
) -> Source:
    """A sweep that was judged on these data sets, with so many shots each."""
    labels: tuple[Label, ...] = get_args(Label)
    scores = [Score(x, (0.5, 0.6), d, n, d, "test", 9) for x in labels for d, n in judged]
    datasets, shots = (tuple(dict.fromkeys(column)) for column in zip(*judged, strict=True))
    config = SweepConfig(name=name, task=TaskSpec(datasets, backbone, shots, (1,), draws=draws))
    found = Evaluation(0, 0.5, (2, 3), "few-shot", tuple(scores))
    trials = {0: result(0, (0.5,))}
    return Source(LocalStorage(Path(name)), {}, config, trials, found, (), None)


def test_sweeps_that_are_not_judged_are_named_and_that_all_are_provisional_is_said() -> None:
    judged = sweep_of("judged", ("a", 1))
    former = dataclasses.replace(
        sweep_of("former", ("a", 1)), results={7: result(7, (0.9,)), 0: result(0, (0.5,))}
    )
    torn = dataclasses.replace(sweep_of("torn", ("a", 1)), evaluation=None, damaged=True)
    runs = dataclasses.replace(sweep_of("runs", ("a", 1)), evaluation=None, running="process 9")
    section = shots_section([judged, former, torn, runs])
    assert section is not None
    assert [note.partition(".")[0] for note in section.notes[:3]] == [
        f"'{name}' is not shown here" for name in ("former", "torn", "runs")
    ]
    for note, words in zip(
        section.notes,
        ("of trial 0, which is no longer", "cannot be read", "not been evaluated"),
        strict=False,
    ):
        assert words in note
    alone = shots_section([runs, torn])
    assert alone is not None
    assert len(alone.notes) == 2
    assert shots_section([runs]) is None
    told = notices([judged, runs])
    assert "The sweep 'judged' is unfinished" in told[0]
    assert "The sweep 'runs' is still running (process 9)" in told[1]


def over_shots(*sources: Source) -> str:
    """The figure over shots, in which SVG keeps every text as a comment; empty without one."""
    section = shots_section(sources)
    assert section is not None
    return b"".join(figure.svg for figure in section.figures).decode()


def test_accuracy_over_shots_has_a_panel_a_data_set_and_the_mean_of_shared_ones() -> None:
    both = sweep_of("both", ("a", 1), ("a", 4), ("b", 1), ("b", 4), ("c", 4))
    other = sweep_of("other", ("a", 1), ("a", 4), ("b", 1), ("b", 4))
    shown = over_shots(both, other)
    for title in (
        "mean over 2 data sets",
        "a",
        "b",
        "c",
        "the winner (both)",
        "the winner (other)",
    ):
        assert shown.count(f"<!-- {title} -->") == 1
    assert "mean over" not in over_shots(both, sweep_of("third", ("a", 1), ("a", 4)))
    # Nothing is joined where each data set has one number of shots.
    assert over_shots(sweep_of("turned", ("b", 16)), sweep_of("first", ("a", 4))) == ""


@pytest.mark.parametrize("entries", [2, 3, 9])
@pytest.mark.parametrize("length", [3, 40, 90])
def test_a_legend_is_never_cut_off(entries: int, length: int) -> None:
    def paint(axes: Any) -> None:
        for place in range(entries):
            axes.plot([0, 1], [place, place], label=f"{place} {'x' * length}")

    picture = Image.open(io.BytesIO(draw("f", "F", "c", paint).png)).convert("L")
    pixels = np.asarray(picture)
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_data_sets_have_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masked(Learned):
        def masks(self) -> dict[str, torch.Tensor]:
            return {"w": torch.tensor([True, False])}

    cells = [Episode("folder:/data/x/birds", shots, 1) for shots in (1, 4)]
    sizes = {"mean |x_k|_2": 1.0}
    measured = [Measured("s", c.dataset, c.shots, 1, 9, 0.5, sizes, 0.1) for c in cells]
    monkeypatch.setattr(residuals, "measure", lambda _: measured)
    monkeypatch.setattr(mask_figures, "winners", lambda _: [Masked(c, {}, {}, True) for c in cells])
    source = dataclasses.replace(sweep_of("s", ("a", 1)), results={})
    for section in (residuals.residual_section([source]), mask_figures.mask_section([source])):
        assert section is not None
        texts = [figure.svg.decode() for figure in section.figures]
        texts += [table.csv() for table in section.tables]
        assert any("birds" in text for text in texts)
        assert not any("/data" in text for text in texts)
