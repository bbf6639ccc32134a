"""The trials: history, survival, learning curves, timeline, table."""

from __future__ import annotations

import dataclasses

import pytest

from search.core.results import IssuedTrial
from search.reporting.source import Source
from search.reporting.trials import (
    best_so_far,
    history_figure,
    search_section,
    survivors,
    trials_table,
    varied,
)
from tests.search.reporting.made import result, sweep_of, trial_config


@pytest.fixture
def source() -> Source:
    """Completed, pruned and failed trials, with different numbers of steps, and one that runs."""
    trials = (
        result(0, (0.1, 0.2, 0.3, 0.4), lr=0.1, epochs=4),
        result(1, (0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.5, 0.6), lr=0.2),
        result(2, (0.1, 0.15), "PRUNED", lr=0.3),
        dataclasses.replace(result(3, (), "FAIL", lr=0.4), reason="<b>no memory</b>"),
    )
    found = sweep_of("s", trials=trials)
    running = IssuedTrial(4, trial_config(), {"lr": 0.5}, {}, {}, {}, 5.0, (0.2, 0.35))
    return dataclasses.replace(found, issued={4: running})


def test_survivors_are_counted_over_the_share_of_the_training(source: Source) -> None:
    found = survivors(source)
    assert found[0] == (12.5, 3)
    assert found[1] == (25.0, 3)  # the first step of 4 epochs, the second of 8
    assert dict(found)[37.5] == 2
    assert found[-1] == (100.0, 2)  # as many as have completed
    failed = dataclasses.replace(source, results={3: source.results[3]})
    assert survivors(failed) == []


def test_the_history_shows_pruned_trials_and_whole_numbers(source: Source) -> None:
    figure = history_figure(source)
    traces = {trace["name"]: trace for trace in figure.data}
    assert traces["completed"]["x"] == [0, 1]
    assert traces["pruned"]["x"] == [2]
    assert traces["pruned"]["y"] == [15.0]
    assert traces["the paper's setting (trial 0)"]["y"] == [40.0, 40.0]
    assert best_so_far(source) == ([0, 1], [40.0, 60.0])
    axis = figure.layout["xaxis"]
    assert (axis["tickformat"], axis["dtick"]) == ("d", 1)


def test_the_history_shows_what_the_first_trial_knew_of_the_zero_shot_model(
    source: Source,
) -> None:
    assert "zero-shot" not in {trace["name"] for trace in history_figure(source).data}
    first = dataclasses.replace(source.results[0], metrics={"val/accuracy_zero_shot": 0.25})
    found = dataclasses.replace(source, results={**source.results, 0: first})
    (line,) = (t for t in history_figure(found).data if t["name"] == "zero-shot")
    assert (line["x"], line["y"]) == ([0, 3], [25.0, 25.0])


def test_curves_show_every_trial_that_has_reported(source: Source) -> None:
    section = search_section(source)
    assert [f.name for f in section.figures] == ["survival", "curves", "timeline"]
    curves = section.figures[1]
    shown = {number for trace in curves.data for number in trace["customdata"]}
    assert {0, 1, 2, 4} <= shown
    winner = next(t for t in curves.data if t["name"] == "trial 1, the winner")
    assert winner["x"][:8] == [12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5, 100.0]


def test_trials_at_the_same_time_have_lines_of_their_own() -> None:
    times = ((0.0, 5.0), (1.0, 3.0), (3.0, 9.0))
    trials = [
        dataclasses.replace(result(n, (0.5,)), begun=begun, ended=ended)
        for n, (begun, ended) in enumerate(times)
    ]
    timeline = search_section(sweep_of("s", trials=tuple(trials))).figures[-1]
    assert timeline.data[0]["y"] == ["host · 1", "host · 2", "host · 2"]
    assert timeline.data[0]["base"] == [0, 1000, 3000]  # milliseconds
    assert timeline.data[0]["x"] == [5000, 2000, 6000]


def test_the_table_has_every_trial_and_what_varies(source: Source) -> None:
    table = trials_table(source)
    assert table.interactive
    assert table.headings[:5] == ("trial", "state", "validation accuracy (%)", "trained (%)", "lr")
    assert [row[:5] for row in table.rows] == [
        ("1", "completed", "60.00", "100", "0.2"),
        ("0", "completed", "40.00", "100", "0.1"),
        ("2", "pruned", "15.00", "25", "0.3"),
        ("4", "unfinished", "35.00", "25", "0.5"),
        ("3", "failed", "-", "0", "0.4"),
    ]
    assert table.rows[-1][-1] == "<b>no memory</b>"
    assert varied(list(source.results.values())) == ["lr"]


def test_a_sweep_by_likelihood_shows_both_numbers(source: Source) -> None:
    task = dataclasses.replace(source.config.task, objective="likelihood")
    config = dataclasses.replace(source.config, task=task)
    table = trials_table(dataclasses.replace(source, config=config))
    assert table.headings[2:4] == ("validation likelihood (%)", "validation accuracy (%)")
