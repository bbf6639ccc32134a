"""The live page: a small HTTP server that shows the sweeps of a storage location.

    GET /              all sweeps that have a finished trial, as one table and one history
    GET /NAME          one sweep
    GET /content, /NAME/content    what these pages show, as JSON; they ask for it again and again

It reads the sweeps' folders and changes nothing. Content is rebuilt in the background, with a pause
of ten times the time that it took, so that a running sweep keeps its processors.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from plotly.offline import get_plotlyjs

from search.core.problems import UsageError
from search.core.sweep_folder import sweep_folders
from search.reporting.page import live_content, live_page, resource
from search.reporting.source import Source, read_source, source_of
from search.tracking.uri import tracking_uri
from trainables.core.credentials import shown
from trainables.core.storage import StorageError

logger = logging.getLogger(__name__)

ALL = ""
"""Name of the page of all sweeps."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PAUSE = 2.0  # seconds between two rebuilds, at least
_PAUSE_FACTOR = 10.0  # pause in multiples of the time that a rebuild took
_COOKIE = "dashboard"


@dataclass(frozen=True)
class _Content:
    """Content of a page."""

    data: bytes
    """JSON with `html` and `figures`."""
    due: float
    """Monotonic time from which it may be rebuilt."""

    @property
    def tag(self) -> str:
        """HTTP's entity tag."""
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'


class LivePages:
    """The content of all pages: stored, and rebuilt in the background when it is asked for."""

    def __init__(self, storage: str, only: str = ALL) -> None:
        """Serve the sweeps in `storage`, or `only` one of them."""
        self.storage, self.only = storage, only
        self._stored: dict[str, _Content] = {}
        self._building: set[str] = set()
        self._lock = threading.Lock()

    def knows(self, name: str) -> bool:
        """Whether there is a page of this name; raises `StorageError`."""
        if self.only:
            return name == self.only
        return name == ALL or name in {sweep.name for sweep in sweep_folders(self.storage)}

    def content(self, name: str) -> _Content:
        """Return the content of a page. The first call waits for it, later ones do not."""
        with self._lock:
            found = self._stored.get(name)
            stale = found is not None and time.monotonic() > found.due
            build = stale and name not in self._building
            self._building |= {name} if build else set()
        if found is None:
            return self._build(name)
        if build:
            threading.Thread(target=self._build, args=(name,), daemon=True).start()
        return found

    def _build(self, name: str) -> _Content:
        begun = time.monotonic()
        try:
            data = self._read(name)
        except (UsageError, StorageError) as error:
            problems = error.problems if isinstance(error, UsageError) else [str(error)]
            lines = "".join(f'<p class="running">{html.escape(line)}</p>' for line in problems)
            data = json.dumps({"html": lines, "figures": {}}).encode()
        except Exception:
            logger.exception("The page of '%s' could not be built", name)
            data = json.dumps({"html": "<p>This page cannot be built.</p>", "figures": {}}).encode()
        ended = time.monotonic()
        found = _Content(data, ended + max(_PAUSE, _PAUSE_FACTOR * (ended - begun)))
        with self._lock:
            self._stored[name] = found
            self._building.discard(name)
        return found

    def _read(self, name: str) -> bytes:
        if name != ALL:
            source = read_source(name, self.storage)
            links = [] if self.only else [("all sweeps", "/")]
            uri = tracking_uri(source.config)
            links += [("MLflow", shown(uri))] * uri.startswith(("http://", "https://"))
            return live_content([source], links)
        sources = self._sources()
        if not sources:
            raise UsageError([f"No sweep in '{shown(self.storage)}' has a finished trial yet."])
        return live_content(sources, [(s.name, f"/{quote(s.name)}") for s in sources])

    def _sources(self) -> list[Source]:
        found = []
        for sweep in sweep_folders(self.storage):
            try:
                found.append(source_of(sweep.files, sweep.owner()))
            except UsageError:
                continue  # nothing has finished yet, or it is unreadable
        return found


class LiveServer(ThreadingHTTPServer):
    """Serves `LivePages`."""

    daemon_threads = True

    def __init__(self, pages: LivePages, host: str, port: int, token: str = "") -> None:
        """Bind to an address. With a token, every request must carry it, first in the URL and then
        in a cookie; without, only requests to a loopback name are answered. Raises `OSError`."""
        super().__init__((host, port), _Handler)
        self.pages, self.token = pages, token
        script = "text/javascript; charset=utf-8"
        self.files: Mapping[str, tuple[str, bytes]] = {
            "/plotly.js": (script, get_plotlyjs().encode()),
            "/page.js": (script, resource("page.js").encode()),
        }


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = "fewshot-clip", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request."""
        parts = urlsplit(self.path)
        given = parse_qs(parts.query).get("token", [""])[0]
        if not self._is_allowed(given):
            return self._send(403, "text/plain", b"Open the address that the command printed.\n")
        if given and self.server.token:  # keep it out of the address
            cookie = f"{_COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/"
            return self._send(
                303, "text/plain", b"", {"Location": parts.path, "Set-Cookie": cookie}
            )
        if parts.path in self.server.files:
            return self._send(200, *self.server.files[parts.path])
        name, _, rest = parts.path.strip("/").partition("/")
        name = unquote(name)
        if name == "content":
            name, rest = ALL, name
        pages = self.server.pages
        if pages.only and name == ALL and not rest:
            return self._send(303, "text/plain", b"", {"Location": f"/{quote(pages.only)}"})
        try:
            known = rest in ("", "content") and pages.knows(name)
        except StorageError as error:
            return self._send(503, "text/plain", f"{error}\n".encode())
        if not known:
            return self._send(404, "text/plain", b"There is no such sweep.\n")
        if not rest:
            page = live_page(name or "Sweeps")
            return self._send(200, "text/html; charset=utf-8", page.encode())
        found = pages.content(name)
        if self.headers.get("If-None-Match") == found.tag:
            return self._send(304, "application/json", b"", {"ETag": found.tag})
        return self._send(200, "application/json", found.data, {"ETag": found.tag})

    def _is_allowed(self, given: str) -> bool:
        token = self.server.token
        if not token:  # a page of another origin cannot reach this one by its own name
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            return host in LOOPBACK
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            cookie = None
        found = given or (cookie.value if cookie else "")
        return hmac.compare_digest(found.encode(), token.encode())

    def _send(
        self, status: int, kind: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        standard = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**standard, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log quietly."""
        logger.debug(format, *arguments)
