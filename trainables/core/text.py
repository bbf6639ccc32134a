"""Names that people type and read: suggestions for unknown ones, and text that is safe to print."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

_BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that change the order in which the text around them is shown."""
_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"-|[-+]?[\d.,]+(e[-+]?\d+)?( ± [\d.]+)?( \[[-+\d., ]+\])?")
_SHOWN = 60  # characters of a wrong value in a message


def amount(number: int, noun: str) -> str:
    """Return a number of things in words: `1 trial`, `0 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def did_you_mean(kind: str, name: str, known: Iterable[str]) -> str:
    """Return an error message for an unknown name: all known ones, and the most similar."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no {kind} '{printable(name)}'. Known: {', '.join(names)}.{hint}"


def unprintable(text: str) -> str:
    """Return the first character that no name may contain, e.g. `U+001B`, or an empty string:
    control characters, line separators, lone surrogates and marks of text direction."""
    return next((f"U+{ord(c):04X}" for c in text if not _is_printable(c)), "")


def printable(text: str, keep: str = "") -> str:
    """Return the text with an escape sequence in place of each such character, except those in
    `keep`: on one line, unless `keep` has a line break."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_printable(c) else ascii(c)[1:-1] for c in text)


def shortened(text: str) -> str:
    """Return the beginning of a long text, printable."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
    return printable(shown)


def in_spreadsheet(text: str) -> str:
    """Return a cell's text, with a quote before what a spreadsheet would run as a formula."""
    formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def _is_printable(character: str) -> bool:
    unsafe = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return not unsafe and character not in _BIDIRECTIONAL
