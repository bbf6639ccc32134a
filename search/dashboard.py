"""`python -m search.dashboard`: shows running and finished sweeps on a page that updates itself."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence

from search.core.sweep_folder import find_sweep
from search.terminal.console import open_console, print_errors
from search.terminal.exit_code import Failures, exit_code
from search.terminal.parser import Parser
from trainables.core.storage import StorageError

_INTRODUCTION = """\
Show one sweep, or all sweeps in a storage location, on a local page that updates itself.

It reads only the sweeps' folders and changes nothing. Ctrl-C stops it; sweeps go on."""
_LOWEST = 19  # priority: training comes first


def build_parser() -> Parser:
    """Build the parser of the options."""
    parser = Parser("search.dashboard", _INTRODUCTION)
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="name of the sweep")
    parser.add_storage()
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; for others than this machine, e.g. 0.0.0.0, the page's address "
        "contains a secret (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=int, default=8008, help="port to listen on; 0 for any (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 after Ctrl-C, 2 for invalid input, 1 if the address cannot be used."""
    failures: Failures = {StorageError: (1, "The storage cannot be read: {}.")}
    return exit_code(lambda: _run(arguments), failures=failures)


def _run(arguments: Sequence[str] | None) -> int:
    console = open_console()
    options = build_parser().parse_args(arguments)
    if options.name:
        find_sweep(options.name, options.storage)
    from search.reporting.live import LOOPBACK, LivePages, LiveServer

    os.nice(_LOWEST)
    token = "" if options.host in LOOPBACK else secrets.token_urlsafe(24)
    pages = LivePages(options.storage, options.name)
    try:
        server = LiveServer(pages, options.host, options.port, token)
    except (OSError, OverflowError) as error:
        print_errors(
            [
                f"--host and --port must be an address that is free, got {options.host} and "
                f"{options.port} ({error}). Use another --port."
            ]
        )
        return 1
    with server:
        query = f"?token={token}" if token else ""
        address = f"http://{options.host}:{server.server_port}/{options.name}{query}"
        console.print(f"Dashboard: {address}", soft_wrap=True, highlight=False)
        console.print("Ctrl-C stops it.", style="dim")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
