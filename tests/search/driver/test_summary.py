"""The last lines that a sweep prints."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from search.core.config import SweepConfig
from search.driver.summary import print_summary
from search.driver.sweep import Outcome
from search.reporting.files import REPORT
from tests.servers import s3_server
from trainables.core.storage import Storage, open_storage


def summary_of(sweep: Storage, tracking_uri: str = "none") -> str:
    outcome = Outcome(
        *(SweepConfig(name="one"), sweep, None, None, {}, 0, False, tracking_uri, 0),
        *(None, None, (), ""),
    )
    text = io.StringIO()
    print_summary(outcome, Console(file=text, width=500))
    return text.getvalue()


def test_the_report_in_a_bucket_has_an_address(tmp_path: Path) -> None:
    """The options of a location come after its path, and its secrets nowhere."""
    with s3_server(tmp_path) as server:
        sweep = open_storage(server.location("sweeps/one"))
        sweep.write(f"{REPORT}/report.html", b"")
        options = server.location("").partition("?")[2]
        assert options
        lines = summary_of(sweep).splitlines()
    (folder,) = (line for line in lines if line.startswith("Folder: "))
    (report,) = (line for line in lines if line.startswith("Report: "))
    path, _, _ = folder.removeprefix("Folder: ").partition("?")
    assert folder.partition("?")[2]
    assert report == f"Report: {path}/report/report.html?{folder.partition('?')[2]}"


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("databricks", "MLflow: databricks"),
        ("http://host:5000/", "MLflow: http://host:5000"),
    ],
)
def test_the_address_of_a_server(tmp_path: Path, uri: str, line: str) -> None:
    assert line in summary_of(open_storage(str(tmp_path)), uri).splitlines()
