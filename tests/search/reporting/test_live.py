"""The live page's server: addresses, freshness, tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from search.core.config import SweepConfig
from search.core.results import IssuedTrial, commit, write_issued
from search.core.sweep_folder import SweepFolder, SweepRecord
from search.dashboard import main
from search.reporting import live
from search.reporting.live import LivePages, LiveServer
from tests.search.reporting.made import result, trial_config
from trainables.core.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Two sweeps, one with an unfinished trial, and one without a finished trial."""
    for name, trials in (("one", 2), ("two", 3), ("new", 0)):
        files = LocalStorage(tmp_path / name)
        record = SweepRecord(name, SweepConfig("taskres", name=name), {})
        SweepFolder(files).write_record(record)
        for number in range(trials):
            commit(files, result(number, (0.5, 0.6), lr=0.1 * number), [])
    running = IssuedTrial(2, trial_config(), {"lr": 0.5}, {}, {}, {}, 5.0, (0.7,))
    write_issued(LocalStorage(tmp_path / "one"), running)
    return tmp_path


class Client:
    """A browser without a screen."""

    def __init__(self, server: LiveServer) -> None:
        self.port = server.server_port

    def get(self, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(
            "GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data

    def html(self, path: str) -> str:
        answer, data = self.get(path)
        assert answer.status == 200
        return str(json.loads(data)["html"])


def serve(pages: LivePages, token: str = "") -> Iterator[Client]:
    with LiveServer(pages, "127.0.0.1", 0, token) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


@pytest.fixture
def client(storage: Path) -> Iterator[Client]:
    yield from serve(LivePages(str(storage)))


def test_one_sweep_and_all_sweeps_have_a_page(client: Client) -> None:
    answer, page = client.get("/one")
    assert answer.status == 200
    assert b'src="/plotly.js"' in page
    assert "script-src 'unsafe-eval' 'self'" in page.decode()
    found = json.loads(client.get("/one/content")[1])
    assert "2 finished trials, 1 unfinished" in found["html"]
    assert "is unfinished" in found["html"]
    assert {"history", "curves", "slice-lr"} <= set(found["figures"])
    every = client.html("/content")
    assert 'href="/two"' in every
    assert '<td class="w">two</td>' in every
    assert "new" not in every  # it has no finished trial
    assert "a finished trial" in client.html("/new/content")
    assert client.get("/plotly.js")[0].getheader("Content-Type", "").startswith("text/javascript")


@pytest.mark.parametrize(
    "path", ["/none", "/none/content", "/one/other", "/../one", "/%2e%2e/one", "/one/result.json"]
)
def test_nothing_else_has_a_page(client: Client, path: str) -> None:
    assert client.get(path)[0].status == 404


def test_a_page_follows_the_folder(
    client: Client, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    monkeypatch.setattr(live, "_PAUSE_FACTOR", 0.0)
    answer, _ = client.get("/two/content")
    tag = answer.getheader("ETag", "")
    assert client.get("/two/content", If_None_Match=tag)[0].status == 304
    commit(LocalStorage(storage / "two"), result(3, (0.9,), lr=0.4), [])
    deadline = time.monotonic() + 20
    while "4 finished trials" not in client.html("/two/content"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_other_origins_cannot_read_a_page_under_a_name_of_theirs(client: Client) -> None:
    assert client.get("/one", Host="evil.example:80")[0].status == 403
    assert client.get("/one", Host="localhost:80")[0].status == 200


def test_a_token_is_asked_for(storage: Path) -> None:
    for client in serve(LivePages(str(storage)), "secret"):
        assert client.get("/one")[0].status == 403
        assert client.get("/one?token=wrong")[0].status == 403
        answer, _ = client.get("/one?token=secret", Host="gpu-box:8008")
        assert (answer.status, answer.getheader("Location")) == (303, "/one")
        cookie = answer.getheader("Set-Cookie", "")
        assert "HttpOnly; SameSite=Strict" in cookie
        assert client.get("/one", Cookie=cookie.partition(";")[0])[0].status == 200


def test_one_sweep_can_be_served_alone(storage: Path) -> None:
    for client in serve(LivePages(str(storage), "one")):
        answer, _ = client.get("/")
        assert (answer.status, answer.getheader("Location")) == (303, "/one")
        assert client.get("/two")[0].status == 404


def test_wrong_addresses_are_reported(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["none", "--storage", str(storage)]) == 2
    assert "There is no sweep 'none'" in capsys.readouterr().err
