"""The result: headline numbers."""

from __future__ import annotations

import dataclasses

from search.reporting.winner import headlines
from tests.search.reporting.made import result, sweep_of


def test_the_winner_s_accuracy_is_shown_whatever_trials_are_ranked_by() -> None:
    ranked_by_likelihood = dataclasses.replace(result(0, (0.6,)), metrics={"val/accuracy": 0.75})
    source = sweep_of("s", trials=(ranked_by_likelihood,))
    shown = {one.label: one.value for one in headlines(source)}
    assert shown["validation accuracy, the winner"] == "75.0 %"
