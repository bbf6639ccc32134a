"""A real Chromium that reaches this machine alone, and a real MLflow server with a sweep."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from search.core.config import SweepConfig
from search.tracking.mlflow_reporter import open_runs
from tests.search.conftest import Sweep
from tests.servers import Mlflow
from trainables.core.storage import LocalStorage

WIDTH, HEIGHT = 1400, 900
_PATIENCE = 60_000  # milliseconds
MODEL = "digits-rmt"
NAME = "rmt-digits"
QUICK = (
    *("--shots", "4", "--seeds", "1", "--trials", "4", "--eval-seeds", "1", "--pruner", "none"),
    *("--set", "epochs=3", "--range", "lr=2e-3:6e-3:log"),
)
SETTLED = """(dark) => {
    const close = { panelOpen_v1: false, 'fab.autoOpenedOnFirstLoad_v1': true };
    for (const [key, value] of Object.entries(close))
        localStorage.setItem(`mlflow.assistant.${key}`, value);
    localStorage.setItem('mlflow.telemetry.info.alert.dismissed_v1', 'true');
    localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
    if (dark) localStorage.setItem('_mlflow_dark_mode_toggle_enabled', 'true');
}"""
"""Settings that a user makes once: close the assistant and the telemetry notice, choose "Model
training"."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser, started once per session."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    expect.set_options(timeout=_PATIENCE)
    with sync_playwright() as playwright:
        # Root has no sandbox; a small /dev/shm is common in containers.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        options.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        found = playwright.chromium.launch(executable_path=program, args=options)
        yield found
        found.close()


@dataclass
class Window:
    """A page, what it requested elsewhere, and the errors it reported."""

    page: Page
    outside: list[str]
    """Requests to other addresses; those to other machines fail."""
    errors: list[str]
    """Console errors and uncaught exceptions."""


def open_window(context: BrowserContext, address: str) -> Window:
    """Open a page of `address`, a server or a file. Requests are noted as they are sent: a page
    whose requests pass through the tests has no cache."""
    window = Window(context.new_page(), [], [])
    page, own = window.page, (address, "data:", "blob:", "about:")
    page.on("request", lambda r: None if r.url.startswith(own) else window.outside.append(r.url))
    page.on("console", lambda m: window.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: window.errors.append(str(error)))
    page.set_default_timeout(_PATIENCE)
    return window


@pytest.fixture(scope="session")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser profile with all pop-ups closed. The tests share its cache."""
    found = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, locale="en-GB")
    found.add_init_script(f"({SETTLED})(false)")
    yield found
    found.close()


Photograph = Callable[[Page, str], None]


@pytest.fixture
def photograph(request: pytest.FixtureRequest) -> Photograph:
    """Save pictures of pages if `--screenshots FOLDER` is given."""
    folder = request.config.getoption("screenshots")

    def take(page: Page, name: str) -> None:
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        assert len(picture.getcolors(1 << 24) or ()) > 30  # not an empty page
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            small = picture.quantize(128, method=Image.Quantize.MEDIANCUT)
            small.save(Path(folder) / f"{name}.png", optimize=True)

    return take


@dataclass(frozen=True)
class Finished:
    """A sweep in an MLflow server, with its winner registered."""

    sweep: Sweep
    server: Mlflow

    @property
    def view(self) -> str:
        """URL of MLflow's view of the trials."""
        record = json.loads((self.sweep.folder / "sweep.json").read_text())
        config, storage = SweepConfig(name=NAME), LocalStorage(self.sweep.folder)
        runs = open_runs(self.server.uri, config, record["id"], storage)
        runs.connect()
        return f"{self.server.uri}{runs.page}"

    @property
    def experiment(self) -> str:
        """URL of MLflow's view of all runs."""
        return f"{self.view.partition('?')[0]}?workflowType=machine_learning"


@pytest.fixture(scope="session")
def finished(
    browser: Browser, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """The README's sweep if pictures are taken, otherwise a shorter one."""
    del browser  # without a browser, the sweep is not run
    folder = tmp_path_factory.mktemp("finished")
    server = Mlflow(folder)
    server.wait()
    try:
        sweep = Sweep(folder, NAME, report=True)
        options = () if request.config.getoption("screenshots") else QUICK
        where = ("--tracking-uri", server.uri, "--register", MODEL)
        done = sweep.run("--space", "rmt", *options, *where)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"Registered as version 1 of {MODEL}" in done.stdout, done.stdout + done.stderr
        yield Finished(sweep, server)
    finally:
        server.kill()
