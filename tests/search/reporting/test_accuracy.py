"""Test accuracy over shots and data sets, and the comparison of sweeps."""

from __future__ import annotations

import dataclasses

from search.reporting.accuracy import accuracy_section, comparison_section
from search.reporting.page import notices
from search.reporting.source import Source
from tests.search.reporting.made import result, sweep_of


def test_sweeps_that_are_not_judged_are_named_and_that_all_are_provisional_is_said() -> None:
    judged = sweep_of("judged", ("a", 1))
    former = dataclasses.replace(
        sweep_of("former", ("a", 1)), results={7: result(7, (0.9,)), 0: result(0, (0.5,))}
    )
    torn = dataclasses.replace(sweep_of("torn", ("a", 1)), evaluation=None, damaged=True)
    runs = dataclasses.replace(sweep_of("runs", ("a", 1)), evaluation=None, running="process 9")
    section = accuracy_section([judged, former, torn, runs])
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
    alone = accuracy_section([runs, torn])
    assert alone is not None
    assert len(alone.notes) == 2
    assert accuracy_section([runs]) is None
    told = notices([judged, runs, torn])
    assert "The sweep 'judged' is unfinished" in told[0]
    assert "The sweep 'runs' is still running (process 9)" in told[1]
    assert "The sweep 'torn' is shown without test results. Its evaluation cannot be" in told[-1]


def test_a_single_draw_is_said_once_and_has_no_deviation() -> None:
    def one_draw(name: str) -> Source:
        found = sweep_of(name, ("a", 1))
        assert found.evaluation is not None
        scores = [
            dataclasses.replace(score, values=score.values[:1]) for score in found.evaluation.scores
        ]
        own = dataclasses.replace(found.evaluation, seeds=(2,), scores=tuple(scores))
        return dataclasses.replace(found, evaluation=own)

    section = accuracy_section([one_draw("s"), one_draw("t")])
    assert section is not None
    assert sum(note.startswith("With a single draw") for note in section.notes) == 1
    assert not any("deviation over draws" in note for note in section.notes)


def over_shots(*sources: Source) -> list[str]:
    """The title of every figure over shots."""
    section = accuracy_section(sources)
    assert section is not None
    return [figure.title.removeprefix("Accuracy over shots: ") for figure in section.figures]


def test_accuracy_over_shots_has_a_figure_per_data_set_and_the_mean_of_shared_ones() -> None:
    both = sweep_of("both", ("a", 1), ("a", 4), ("b", 1), ("b", 4), ("c", 4))
    other = sweep_of("other", ("a", 1), ("a", 4), ("b", 1), ("b", 4))
    assert over_shots(both, other) == ["mean over 2 data sets", "a", "b", "c"]
    section = accuracy_section([both, other])
    assert section is not None
    names = [trace["name"] for trace in section.figures[1].data]
    assert {"the winner (both)", "the winner (other)"} <= set(names)
    assert len(names) == len(set(names))
    assert over_shots(both, sweep_of("third", ("a", 1), ("a", 4))) == ["a", "b", "c"]
    # Nothing is joined if each data set has one number of shots.
    assert over_shots(sweep_of("turned", ("b", 16)), sweep_of("first", ("a", 4))) == []


def test_sweeps_of_other_data_and_methods_share_one_table_and_one_history() -> None:
    trials = (result(0, (0.5,)), result(1, (0.9,), "PRUNED"), result(2, (0.7,)))
    third = dataclasses.replace(sweep_of("third", ("b", 4)), evaluation=None)
    section = comparison_section([sweep_of("one", trials=trials), sweep_of("two"), third])
    (table,), (history,) = section.tables, section.figures
    assert [row[0] for row in table.rows] == ["one", "two", "third"]
    winner = table.headings.index("test: the winner")
    assert [row[winner] for row in table.rows] == ["55.00 ± 7.07"] * 2 + ["-"]
    assert [trace["name"] for trace in history.data] == ["one", "two", "third"]
    assert history.data[0]["x"] == [0, 2, 2]  # pruned trials are no winners
    assert history.data[0]["y"] == [50.0, 70.0, 70.0]
