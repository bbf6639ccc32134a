"""The report of 1,000 trials in a real Chromium: figures, table, phone, dark mode, print."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from search.core.config import SweepConfig
from search.core.results import State, commit
from search.core.sweep_folder import SweepFolder, SweepRecord
from search.reporting.live import LivePages, LiveServer
from search.reporting.page import write_report
from search.reporting.source import source_of
from tests.browser.conftest import Photograph, Window, open_window
from tests.search.reporting.made import result
from trainables.core.storage import LocalStorage

TRIALS = 1000
EVIL = "<img src=x onerror=alert(1)>"


def write_sweep(files: LocalStorage, trials: int) -> None:
    """Write the results of many trials without training them."""
    SweepFolder(files).write_record(
        SweepRecord("id", SweepConfig("taskres", name="many", trials=trials), {})
    )
    rng = np.random.default_rng(0)
    for number in range(trials):
        state: State = ("COMPLETE", "PRUNED", "PRUNED", "COMPLETE", "FAIL")[number % 5]
        steps = 8 if state == "COMPLETE" else int(rng.integers(1, 8))
        values = tuple(round(float(v), 3) for v in np.sort(rng.uniform(0.1, 0.9, steps)))
        names = {name: float(rng.uniform(0, 1)) for name in ("alpha", "lr", "leak")}
        found = result(number, values, state, **names)
        begun = 1_700_000_000.0 + 10 * number
        changed = {"begun": begun, "ended": begun + 9, "reason": EVIL * (state == "FAIL")}
        rows = [{"epoch": float(e), "train/loss": 2.0 / e} for e in range(1, steps + 1)]
        commit(files, type(found)(**(vars(found) | changed)), rows)


def written(folder: Path, trials: int) -> Path:
    """The report of a sweep in `folder`."""
    write_sweep(LocalStorage(folder), trials)
    write_report(source_of(LocalStorage(folder)))
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    begun = time.process_time()
    page = written(tmp_path_factory.mktemp("many") / "many", TRIALS)
    assert time.process_time() - begun < 15
    assert page.stat().st_size < 6e6
    return page.as_uri()


WIDE, PHONE = (1400, "light"), (390, "dark")
OTHERS = [pytest.param(other, marks=pytest.mark.slow) for other in ((1400, "dark"), (390, "light"))]


@contextmanager
def opened(
    browser: Browser, screen: tuple[int, Any], address: str, path: str = ""
) -> Iterator[Window]:
    """A page on a screen of this width and scheme."""
    width, scheme = screen
    context = browser.new_context(
        viewport={"width": width, "height": 900 if width > 1000 else 800}, color_scheme=scheme
    )
    found = open_window(context, address)
    found.page.goto(address + path)
    yield found
    context.close()


@pytest.fixture(scope="module", params=[WIDE, PHONE, *OTHERS], ids="{0[0]}-{0[1]}".format)
def window(
    request: pytest.FixtureRequest, browser: Browser, address: str
) -> Iterator[tuple[Window, str]]:
    """The report on one screen: it is loaded once for all tests."""
    with opened(browser, request.param, address) as found:
        yield found, "{}-{}".format(*request.param)


def scroll(page: Page) -> None:
    """Draw all figures: each is drawn when it comes near the screen."""
    missing = ".plot:not(.js-plotly-plot)"
    for _ in range(200):
        page.evaluate("selector => document.querySelector(selector)?.scrollIntoView()", missing)
        if not page.locator(missing).count():
            return
        page.wait_for_timeout(50)


def test_everything_is_drawn_and_nothing_is_cut_off(
    window: tuple[Window, str], photograph: Photograph
) -> None:
    found, name = window
    page, width = found.page, int(name.partition("-")[0])
    expect(page.locator("dl")).to_be_in_viewport()
    expect(page.locator(".first .js-plotly-plot .main-svg").first).to_be_visible()
    photograph(page, f"report-{name}")
    scroll(page)
    assert page.locator(".plot").count() == page.locator(".js-plotly-plot").count() >= 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (found.outside, found.errors) == ([], [])
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if name.endswith("light") else "rgb(20, 23, 26)")
    ink = page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
    assert ink == ("rgb(26, 26, 26)" if name.endswith("light") else "rgb(230, 230, 230)")


def cells(page: Page, column: int) -> list[str]:
    return page.evaluate(  # type: ignore[no-any-return]
        """column => [...document.querySelectorAll('#table-trials tbody tr:not([hidden])')]
            .map(row => row.cells[column].textContent)""",
        column,
    )


@pytest.mark.parametrize("window", [WIDE], indirect=True)
def test_the_table_is_sorted_and_filtered(window: tuple[Window, str]) -> None:
    page = window[0].page
    assert len(cells(page, 0)) == TRIALS
    heading = page.locator("#table-trials thead button").first
    heading.click()
    assert cells(page, 0) == [str(n) for n in range(TRIALS)]
    heading.click()
    assert cells(page, 0)[0] == str(TRIALS - 1)
    page.get_by_placeholder("pruned").fill("pruned validation>80")
    assert set(cells(page, 1)) == {"pruned"}
    assert all(float(value) > 80 for value in cells(page, 2))
    expect(page.get_by_text(f"{len(cells(page, 0))} of {TRIALS} rows")).to_be_visible()
    page.get_by_placeholder("pruned").fill("trial=12")
    assert cells(page, 0) == ["12"]
    page.get_by_placeholder("pruned").fill("onerror")
    assert set(cells(page, 1)) == {"failed"}  # a reason is text, never markup
    assert page.locator("#table-trials img").count() == 0


@pytest.mark.parametrize("window", [WIDE], indirect=True)
def test_the_command_is_copied(window: tuple[Window, str]) -> None:
    page = window[0].page
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    page.evaluate("document.body.append(document.createElement('textarea'))")
    page.locator("textarea").focus()
    page.keyboard.press("Control+V")
    assert "python -m search.run --space taskres" in page.locator("textarea").input_value()


def test_it_is_printed_on_white_with_every_figure(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, (1400, "dark"), written(tmp_path / "few", 40).as_uri()) as found:
        page = found.page
        page.locator(".js-plotly-plot").first.wait_for()
        assert page.locator(".plot:not(.js-plotly-plot)").count() > 0
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator(".plot:not(.js-plotly-plot)").count() == 0
        assert page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill") == (
            "rgb(26, 26, 26)"
        )
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.pdf(path=tmp_path / "report.pdf", format="A4")
        content = (tmp_path / "report.pdf").read_bytes()
        assert content.startswith(b"%PDF")
        assert len(content) > 100_000


def test_the_live_page_follows_the_sweep(browser: Browser, tmp_path: Path) -> None:
    files = LocalStorage(tmp_path / "many")
    write_sweep(files, 20)
    with LiveServer(LivePages(str(tmp_path)), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        address = f"http://127.0.0.1:{server.server_port}"
        window = open_window(context, address)
        page = window.page
        page.goto(f"{address}/many")
        expect(page.get_by_text("20 finished trials, 0 unfinished")).to_be_visible()
        page.get_by_placeholder("pruned").fill("completed")
        page.locator("summary").first.click()
        page.locator(".first .js-plotly-plot").wait_for()
        page.evaluate("document.querySelector('.first .plot').marked = true")
        write_sweep(files, 30)
        expect(page.get_by_text("30 finished trials, 0 unfinished")).to_be_visible()
        assert set(cells(page, 1)) == {"completed"}  # the filter holds
        assert page.locator("details[open]").count() == 1
        assert page.evaluate("document.querySelector('.first .plot').marked")  # zoom holds, too
        assert (window.outside, window.errors) == ([], [])
        context.set_offline(True)
        expect(page.get_by_text("The dashboard does not answer")).to_be_visible()
        context.set_offline(False)
        expect(page.get_by_text("The dashboard does not answer")).to_be_hidden()
        context.close()
        server.shutdown()


@pytest.mark.parametrize("screen", [WIDE, PHONE, *OTHERS], ids="{0[0]}-{0[1]}".format)
def test_the_live_page_fits_every_screen(
    browser: Browser, tmp_path: Path, photograph: Photograph, screen: tuple[int, str]
) -> None:
    write_sweep(LocalStorage(tmp_path / "many"), 40)
    with LiveServer(LivePages(str(tmp_path)), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with opened(browser, screen, address, "/many") as found:
            page = found.page
            expect(page.locator(".first .js-plotly-plot .main-svg").first).to_be_visible()
            photograph(page, "dashboard-{}-{}".format(*screen))
            assert page.evaluate("document.documentElement.scrollWidth") <= screen[0]
            assert (found.outside, found.errors) == ([], [])
        server.shutdown()
