"""MLflow's page of a sweep with 1,000 trials opens and sorts all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from search import sync
from search.core.config import SweepConfig
from search.core.results import Result, State, commit
from search.core.sweep_folder import FORMAT
from search.tracking.mlflow_reporter import open_runs
from search.tracking.mlflow_runs import STATE
from tests.browser.conftest import SETTLED, Photograph, Window, open_window
from tests.browser.test_pages import ACCURACY, cells, wait_for_order
from tests.search.in_mlflow import runs_of
from tests.servers import Mlflow
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage
from trainables.methods.taskres import TaskResConfig
from trainables.trial import TrialConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
    ),
]

TRIALS, EPOCHS, BEGUN = 1000, 3, 1_700_000_000.0
SEEN = 10  # number of rows that the first screen always shows


def write_sweep(sweep: LocalStorage) -> list[float]:
    """Write the results of 1,000 trials without training them; return their accuracies."""
    config = SweepConfig("taskres", name="many")
    record = {"format": FORMAT, "id": "many", "config": config.to_dict(), "fingerprints": {}}
    sweep.write("sweep.json", json.dumps(record).encode())
    rng = np.random.default_rng(0)
    values = [round(float(value), 4) for value in rng.uniform(0.1, 0.9, TRIALS)]
    for number, value in enumerate(values):
        rate = float(10 ** rng.uniform(-4, -2))
        optim = OptimConfig(lr=rate, epochs=EPOCHS, batch_size=64)
        trial = TrialConfig("taskres", "search", TaskResConfig(), optim)
        begun = BEGUN + 10 * number
        rows = [
            {"epoch": float(e), "time": begun + e, ACCURACY: value * e / EPOCHS}
            for e in range(1, EPOCHS + 1)
        ]
        rows[-1][ACCURACY] = value
        last = {ACCURACY: value}
        state: State = "PRUNED" if number % 5 == 1 else "COMPLETE"
        result = Result(
            *(number, state, value, (value,), last, {"lr": rate}, {}, {}, trial.to_dict()),
            *(9.0, begun, begun + 9, "host"),
        )
        commit(sweep, result, rows)
    return values


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, list[float]]]:
    """The server's address, the sweep's view, and the accuracies."""
    folder = tmp_path_factory.mktemp("many")
    values = write_sweep(LocalStorage(folder / "many"))
    database = f"sqlite:///{folder}/mlflow.db"
    assert sync.main(["many", "--storage", str(folder), "--tracking-uri", database]) == 0
    server = Mlflow(folder)
    server.wait()
    try:
        config = SweepConfig(name="many")
        runs = open_runs(server.uri, config, "many", LocalStorage(folder / "many"))
        runs.connect()
        yield server.uri, f"{server.uri}{runs.page}", values
    finally:
        server.kill()


@pytest.fixture(params=[(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")])
def window(
    request: pytest.FixtureRequest, browser: Browser, many: tuple[str, str, list[float]]
) -> Iterator[tuple[Window, str]]:
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900 if width > 1000 else 800},
        color_scheme=scheme,
        locale="en-GB",
    )
    context.add_init_script(f"({SETTLED})({json.dumps(scheme == 'dark')})")
    yield open_window(context, many[0]), f"{width}-{scheme}"
    context.close()


def wait_for(page: Page, best: list[float]) -> None:
    wait_for_order(page, best, SEEN, ACCURACY)


@pytest.mark.parametrize("window", [(1400, "light")], indirect=True)
def test_all_of_them_are_sorted(
    many: tuple[str, str, list[float]], window: tuple[Window, str]
) -> None:
    _, view, values = many
    page, best = window[0].page, sorted(values, reverse=True)
    page.goto(view)
    header = page.get_by_test_id(f"sort-header-{ACCURACY}")
    wait_for(page, best)
    header.click()  # sorted on the server: the worst of all trials, not only of the loaded ones
    wait_for(page, best[::-1])
    header.click()
    wait_for(page, best)
    assert cells(page, "attributes.`Run Name`")[0] == f"trial {values.index(best[0])}"
    assert window[0].outside == []


def test_the_first_screen_shows_how_each_trial_ended(
    many: tuple[str, str, list[float]], window: tuple[Window, str], photograph: Photograph
) -> None:
    address, view, values = many
    page, best = window[0].page, sorted(values, reverse=True)
    page.goto(view)
    if window[1].startswith("1400"):
        wait_for(page, best)
        shown = dict(
            zip(cells(page, "attributes.`Run Name`"), cells(page, f"tags.`{STATE}`"), strict=False)
        )
        pruned = {f"trial {n}" for n in range(1, TRIALS, 5)}
        assert {name for name, state in shown.items() if state == "PRUNED"} == pruned & set(shown)
        assert {"PRUNED", "COMPLETE"} == set(shown.values())
    else:
        page.get_by_text(f"trial {values.index(best[0])}", exact=True).first.wait_for()
    photograph(page, f"mlflow-many-{window[1]}")
    runs = runs_of(address, "many")
    assert runs["1"].info.status == "KILLED"
    assert runs["2"].info.status == "FINISHED"
