"""A message to a webhook when a sweep has ended."""

from __future__ import annotations

import argparse
import json
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from search.terminal.parser import quoted, text

_SECONDS = 10.0


def webhook(value: str) -> str:
    """Parse the address of a webhook. Whoever knows it may write there, so it is stored nowhere."""
    parts = urlsplit(text(value))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise argparse.ArgumentTypeError(
            f"must be an address that begins with https:// or http://, got {quoted(value)}"
        )
    return value


def notify(url: str, message: str, facts: dict[str, Any]) -> str:
    """Send a message, as `text` (Slack, Teams) and `content` (Discord), with more facts for
    programs. Return why it could not be sent, or an empty string."""
    body = json.dumps({"text": message, "content": message} | facts).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return ""
    except (OSError, ValueError) as error:  # which does not repeat the address
        return f"The webhook of --notify could not be reached ({error})."
