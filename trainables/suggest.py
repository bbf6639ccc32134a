"""One sentence for a name that a registry does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(kind: str, name: str, known: Iterable[str]) -> str:
    """Rule, value and remedy: what was asked for, what there is, and the nearest to it."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no {kind} '{name}'. Known: {', '.join(names)}.{hint}"
