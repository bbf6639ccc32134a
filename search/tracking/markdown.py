"""Text in Markdown that stands for itself."""

from __future__ import annotations

import html
import re


def plain(text: str) -> str:
    """The text as it is, on one line: no Markdown and no HTML in it is obeyed."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(" ".join(text.split())))


def table(rows: dict[str, str]) -> str:
    """Two columns without a heading; keys and values are Markdown."""
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )
