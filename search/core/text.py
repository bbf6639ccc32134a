"""Text from users and data, made safe to show."""

from __future__ import annotations

_KEPT = "\n\t\xa0\u2003\u200c\u200d"  # line breaks, spaces, and joiners that some scripts need


def printable(text: str) -> str:
    """Replace control characters, direction overrides and lone surrogates by escapes."""
    return "".join(
        c if c.isprintable() or c in _KEPT else c.encode("unicode_escape").decode() for c in text
    )
