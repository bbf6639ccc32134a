"""Addresses without the secrets in them.

By pattern, not by parts: it must hold for what cannot be parsed, too, as a secret key with a slash.
"""

from __future__ import annotations

import re

# A password ends at the last @ before the query. Where there is none, it holds a ? or # itself,
# unless it is a port.
_USER = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/?#:@\s]*):"
    r"(?:[^?#\s]*|(?!\d+[/?#])\S*)@"
)
_OPTION = re.compile(
    r"(?i)(?P<mark>[?&])(?P<name>[^?&=\s]*(?:passw|pwd|token|secret|access_key)[^?&=\s]*)=[^&\s]*"
)


def without_password(uri: str) -> str:
    """The address as it may be stored, and used where its password comes from elsewhere. A user's
    name stays; an access key of S3 goes with its secret, as it opens nothing alone."""
    if "://" not in uri:
        return uri

    def user(found: re.Match[str]) -> str:
        kept = "" if found["scheme"].lower() == "s3" else f"{found['user']}@"
        return f"{found['scheme']}://{kept}"

    head, _, query = _USER.sub(user, uri).partition("?")
    kept = [option for option in query.split("&") if not _OPTION.match(f"&{option}")]
    return f"{head}?{'&'.join(kept)}" if any(kept) else head


def shown(text: str) -> str:
    """An address, or a text with addresses in it, fit to be printed: stars in the place of
    secrets."""
    text = _USER.sub(r"\g<scheme>://\g<user>:***@", text)
    return _OPTION.sub(r"\g<mark>\g<name>=***", text)
