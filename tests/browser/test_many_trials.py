"""MLflow's page of a sweep with 1,000 trials opens and sorts all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import BrowserContext

from search import sync
from search.core.config import SweepConfig
from search.core.results import Result, commit
from search.core.sweep_folder import FORMAT
from search.tracking.mlflow_reporter import open_runs
from tests.browser.conftest import open_window
from tests.browser.test_pages import ACCURACY, cells, wait_for_order
from tests.search.mlflow_server import Server
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
        result = Result(
            *(number, "COMPLETE", value, (value,), last, {"lr": rate}, {}, {}, trial.to_dict()),
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
    server = Server(folder)
    server.start()
    try:
        config = SweepConfig(name="many")
        runs = open_runs(server.uri, config, "many", LocalStorage(folder / "many"))
        runs.connect()
        yield server.uri, f"{server.uri}{runs.page}", values
    finally:
        server.kill()


def test_all_of_them_are_sorted(
    many: tuple[str, str, list[float]], context: BrowserContext
) -> None:
    address, view, values = many
    window = open_window(context, address)
    page, best = window.page, sorted(values, reverse=True)
    page.goto(view)
    header = page.get_by_test_id(f"sort-header-{ACCURACY}")
    wait_for_order(page, best, SEEN)
    header.click()  # sorted on the server: the worst of all trials, not only of the loaded ones
    wait_for_order(page, best[::-1], SEEN)
    header.click()
    wait_for_order(page, best, SEEN)
    assert cells(page, "attributes.`Run Name`")[0] == f"trial {values.index(best[0]):06d}"
    assert window.outside == []
