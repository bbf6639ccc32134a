"""MLflow's page and the report in a real Chromium, in one file so that they share a sweep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import MODEL, NAME, Finished, Photograph, Window, open_window
from tests.search.in_mlflow import runs_of

pytestmark = pytest.mark.timeout(1500)

ACCURACY = "val/accuracy"
RANKED = "val/likelihood"
"""What trials of the sweep are ranked by."""


@pytest.fixture
def window(context: BrowserContext, finished: Finished) -> Iterator[Window]:
    """A window of a user who has not changed MLflow's tables yet."""
    found = open_window(context, finished.server.uri)
    yield found
    found.page.evaluate("localStorage.clear()")
    found.page.close()


def cells(page: Page, column: str) -> list[str]:
    """Values of a column in the visible rows, from top to bottom."""
    found = page.evaluate(
        """column => [...document.querySelectorAll(`[role=gridcell][col-id="${column}"]`)]
            .map(cell => [cell.closest('[role=row]').getAttribute('row-index'), cell.innerText])""",
        column,
    )
    # A run's colour precedes its name.
    return [text.strip().split("\n")[-1] for _, text in sorted(found, key=lambda c: int(c[0]))]


def measured(page: Page, metric: str) -> list[float]:
    """Values of the visible trials."""
    texts = cells(page, f"metrics.`{metric}`")
    return [float(text) for text in texts if text not in ("", "-")]


def values_of(finished: Finished) -> list[float]:
    """Values of the trials' last epoch, in no particular order."""
    return [result["metrics"][RANKED] for result in finished.sweep.results().values()]


def wait_for_order(
    page: Page, values: list[float], most: int | None = None, metric: str = RANKED
) -> None:
    """Wait until the column shows these values, as rounded by MLflow; of a long list, only the
    first."""
    expected = pytest.approx(values[:most], abs=5e-4)
    for _ in range(600):
        if measured(page, metric)[:most] == expected:
            return
        page.wait_for_timeout(100)
    assert measured(page, metric)[:most] == expected


def test_the_sweep_s_view_sorts_its_trials(
    window: Window, finished: Finished, photograph: Photograph
) -> None:
    page, values = window.page, sorted(values_of(finished), reverse=True)
    page.goto(finished.view)
    wait_for_order(page, values)  # sorted best first without a click
    header = page.get_by_test_id(f"sort-header-{RANKED}")
    photograph(page, "mlflow-trials")
    header.click()
    wait_for_order(page, values[::-1])
    header.click()
    wait_for_order(page, values)
    expect(page.get_by_test_id("sort-header-lr")).to_be_visible()  # it differs between trials
    assert window.outside == []


def test_trials_are_nested_in_their_sweep(window: Window, finished: Finished) -> None:
    page = window.page
    page.goto(finished.experiment)
    names = "attributes.`Run Name`"
    page.get_by_role("link", name=NAME, exact=True).wait_for()
    assert cells(page, names) == [NAME]
    page.locator(f'[role=gridcell][col-id="{names}"] button').first.click()
    trials = finished.sweep.results()
    page.get_by_role("link", name=f"trial {max(trials)}").wait_for()
    assert sorted(cells(page, names)) == sorted([NAME, *(f"trial {n}" for n in trials)])


def test_the_sweep_says_what_it_found(window: Window, finished: Finished) -> None:
    page, evaluation = window.page, finished.sweep.evaluation()
    run = runs_of(finished.server.uri, NAME)[""]
    page.goto(f"{base(finished)}/runs/{run.info.run_id}")
    page.get_by_text(re.compile(r"rmt on digits, \d+ shots, backbone tiny")).wait_for()
    expect(page.get_by_text(f"{evaluation['winner']}: validation accuracy")).to_be_attached()
    expect(page.get_by_text(f"python -m search.run --resume {NAME}")).to_be_attached()
    expect(page.get_by_text("test/accuracy_winner").first).to_be_visible()


def test_a_trial_shows_its_parameters_and_its_curves(window: Window, finished: Finished) -> None:
    page = window.page
    number, result = winner(finished)
    run = runs_of(finished.server.uri, NAME)[str(number)]
    page.goto(f"{base(finished)}/runs/{run.info.run_id}")
    page.get_by_text(re.compile(r"^Parameters \(\d+\)$")).wait_for()
    row = page.get_by_role("row").filter(has=page.get_by_text("lr", exact=True))
    value = str(result["config"]["optim"]["lr"])
    expect(row.get_by_text(value, exact=True)).to_be_attached()
    expect(page.get_by_role("link", name=NAME)).to_be_visible()  # the sweep
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_placeholder("Search metric charts").fill(ACCURACY)
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    page.wait_for_function(  # MLflow filters the charts, and loads their points, step by step
        "n => document.querySelector('.js-plotly-plot')?.data[0].y.length === n",
        arg=result["config"]["optim"]["epochs"],
    )


def test_artifacts_can_be_read(window: Window, finished: Finished) -> None:
    page, (number, _) = window.page, winner(finished)
    runs = runs_of(finished.server.uri, NAME)
    page.goto(f"{base(finished)}/runs/{runs[str(number)].info.run_id}/artifacts")
    page.get_by_text("artifact.safetensors").wait_for()  # the packed mask
    page.get_by_text("config.json").click()
    page.get_by_text('"gradient-dropout"').first.wait_for()
    page.goto("about:blank")
    page.goto(f"{base(finished)}/runs/{runs[''].info.run_id}/artifacts")
    expect(page.get_by_text("evaluation.json")).to_be_visible()
    page.get_by_text("report", exact=True).click()
    page.get_by_text("report.html").click()
    inside = page.frame_locator("iframe").first
    inside.get_by_role("heading", name=NAME).first.wait_for()


def test_three_trials_are_compared(
    window: Window, finished: Finished, photograph: Photograph
) -> None:
    page = window.page
    page.goto(finished.view)
    wait_for_order(page, sorted(values_of(finished), reverse=True))
    rows = page.locator(".ag-row input.ag-checkbox-input")
    for row in range(3):
        rows.nth(row).check()
    names = cells(page, "attributes.`Run Name`")[:3]
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()
    for name in names:
        expect(page.get_by_text(name, exact=True).first).to_be_attached()
    page.locator(".js-plotly-plot .parcoords").first.wait_for()
    photograph(page, "mlflow-comparison")


def test_the_winner_is_the_champion(
    window: Window, finished: Finished, photograph: Photograph
) -> None:
    page, (number, _) = window.page, winner(finished)
    page.goto(f"{finished.server.uri}/#/models/{quote(MODEL)}/versions/1")
    page.get_by_text("champion").first.wait_for()
    expect(page.get_by_role("link", name=f"trial {number}")).to_be_visible()
    page.get_by_text(f"sweep {NAME}, trial {number}").wait_for()
    photograph(page, "mlflow-model")
    assert window.outside == []


def base(finished: Finished) -> str:
    """URL of the experiment."""
    return finished.experiment.partition("/runs")[0]


def winner(finished: Finished) -> tuple[int, dict[str, Any]]:
    number = finished.sweep.evaluation()["winner"]
    return number, finished.sweep.results()[number]


# --- the report ---


@pytest.fixture
def address(finished: Finished) -> str:
    return (finished.sweep.folder / "report" / "report.html").as_uri()


def test_it_needs_no_network_and_complains_of_nothing(
    context: BrowserContext, address: str, photograph: Photograph
) -> None:
    window = open_window(context, address)
    window.page.goto(address)
    expect(window.page.get_by_role("heading", name=NAME).first).to_be_visible()
    broken = window.page.evaluate(
        "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    photograph(window.page, "report")
    window.page.get_by_role("heading", name="The search").first.evaluate(
        "heading => heading.scrollIntoView()"
    )
    photograph(window.page, "report-search")
    assert (window.outside, window.errors, broken) == ([], [], 0)
