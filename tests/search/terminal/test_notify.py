"""A webhook receives how a sweep ended; its address is stored nowhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from search.core.problems import StoppedError, UsageError
from search.options import configure, read_request
from search.run import main
from search.terminal.notify import notify


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real server, and what it has received."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(404 if "wrong" in self.path else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/secret", received
        server.shutdown()
        thread.join()


def test_a_message(hook: tuple[str, list[dict[str, Any]]]) -> None:
    url, received = hook
    assert notify(url, "Done.", {"sweep": "mine"}) == ""
    assert received == [{"text": "Done.", "content": "Done.", "sweep": "mine"}]
    problem = notify(f"{url}/wrong", "Done.", {})
    assert "could not be reached" in problem
    assert "secret" not in problem
    assert "could not be reached" in notify("http://127.0.0.1:1/", "Done.", {})


def test_a_stopped_sweep(
    hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StoppedError("the disk is full")

    monkeypatch.setattr("search.run.check_request", stop)
    assert main(["--notify", hook[0]]) == 1
    assert hook[1][0]["text"].startswith("The sweep stopped: the disk is full.")


def test_the_address_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    request = read_request(["--notify", "https://example.org/secret"])
    assert request.notify == "https://example.org/secret"
    assert "secret" not in json.dumps(request.config.to_dict())
    monkeypatch.setenv("FEWSHOT_NOTIFY", "https://example.org/other")
    assert read_request([]).notify == "https://example.org/other"
    with pytest.raises(UsageError, match="--notify must be an address that begins with https://"):
        configure(["--notify", "example.org"])
