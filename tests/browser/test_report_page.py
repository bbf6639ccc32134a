"""A sweep's report in a real Chromium: without a network, on a phone, on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.browser.conftest import NAME, Finished, Photograph, open_window

pytestmark = pytest.mark.timeout(1500)


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


@pytest.mark.parametrize("width", [400, 320])
def test_nothing_is_cut_off_on_a_phone(browser: Browser, address: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = open_window(context, address).page
    page.goto(address)
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    context.close()


def test_it_can_be_printed(context: BrowserContext, address: str, tmp_path: Path) -> None:
    page = open_window(context, address).page
    page.goto(address)
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") >= 1
