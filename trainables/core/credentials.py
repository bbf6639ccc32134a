"""Keeps secrets out of addresses.

`take_secrets` splits an address where it enters the program: the clean address travels on (to
files, logs, other processes), the secrets stay in an environment variable of this process and of
those that it starts. `with_secrets` puts them back right before a library opens the address.

Secrets are found by pattern and not by parsing, which fails for a secret key with a slash.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

SECRETS = "FEWSHOT_SECRETS"
"""Environment variable with the secrets of this process: a JSON object of clean address (without
its path) -> the user information and the query options that were removed from it. To give a process
elsewhere the same access, set it there; never write it to a file that others can read."""

# A password ends at the last @ before the query. If there is none, the password contains a ? or #
# itself, unless it is a port.
_USER = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/?#:@\s]*):"
    r"(?P<password>[^?#\s]*|(?!\d+[/?#])\S*)@"
)
_OPTION = re.compile(
    r"(?i)(?P<mark>[?&])(?P<name>[^?&=\s]*(?:passw|pwd|token|secret|access_key)[^?&=\s]*)=[^&\s]*"
)
_AUTHORITY = re.compile(r"(?P<scheme>[^:/?#]+://)(?P<authority>[^/?#]*)")


def without_password(uri: str) -> str:
    """Return the address without its secrets, fit to be stored. A user's name stays, but an S3
    access key is removed with its secret: it opens nothing alone."""
    return _split(uri)[0]


def take_secrets(uri: str) -> str:
    """Return `without_password(uri)` and keep the secrets for `with_secrets` in the environment."""
    clean, user, options = _split(uri)
    if user or options:
        kept = _kept() | {_key(clean): [user, *options]}
        os.environ[SECRETS] = json.dumps(kept, sort_keys=True)
        _hide_command_line()
    return clean


def with_secrets(uri: str) -> str:
    """Return the address with the secrets that `take_secrets` removed from one with the same host.

    The result is for the library that opens it only: never store, print or pass it on."""
    found = _kept().get(_key(uri), [])
    if not found or without_password(uri) != uri:
        return uri
    user, *options = found
    if user:
        uri = _AUTHORITY.sub(
            lambda m: f"{m['scheme']}{user}@{m['authority'].rpartition('@')[2]}", uri, count=1
        )
    return f"{uri}{'&' if '?' in uri else '?'}{'&'.join(options)}" if options else uri


def shown(text: str) -> str:
    """Return an address, or a text that contains addresses, with stars in place of secrets."""
    text = _USER.sub(r"\g<scheme>://\g<user>:***@", text)
    return _OPTION.sub(r"\g<mark>\g<name>=***", text)


def in_one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, with stars in place of secrets: libraries
    quote the address that they opened."""
    return shown(" ".join(str(error).split()))


def _split(uri: str) -> tuple[str, str, list[str]]:
    """The clean address, the user information (percent-encoded, or empty), the secret options."""
    if "://" not in uri:
        return uri, "", []
    secret = ""

    def user(found: re.Match[str]) -> str:
        nonlocal secret
        secret = f"{found['user']}:{quote(found['password'], safe='%')}"
        kept = "" if found["scheme"].lower() == "s3" else f"{found['user']}@"
        return f"{found['scheme']}://{kept}"

    head, _, query = _USER.sub(user, uri, count=1).partition("?")
    options = [option for option in query.split("&") if option]
    secrets = [option for option in options if _OPTION.match(f"&{option}")]
    kept = [option for option in options if option not in secrets]
    return f"{head}?{'&'.join(kept)}" if kept else head, secret, secrets


def _key(clean: str) -> str:
    """What addresses that need the same secrets have in common: scheme, user, host and query."""
    found = _AUTHORITY.match(clean)
    return f"{found[0]}?{clean.partition('?')[2]}" if found else clean


def _kept() -> dict[str, list[str]]:
    try:
        kept = json.loads(os.environ.get(SECRETS, "{}"))
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _hide_command_line() -> None:
    """Replace secrets in this process's command line, which every user can read in `ps`, by stars.
    Only Linux lets a process do so; it overwrites the memory that the kernel shows."""
    with suppress(OSError, ValueError, IndexError):
        # The fields after the program's name, which may contain spaces; see proc(5).
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        words = ctypes.string_at(start, end - start).decode(errors="surrogateescape").split("\0")
        hidden = "\0".join(shown(word) for word in words).encode(errors="surrogateescape")
        ctypes.memmove(start, hidden.ljust(end - start, b"\0"), end - start)
