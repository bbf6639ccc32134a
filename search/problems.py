"""Mistakes in what a user asked for: all of them at once, before any work starts."""

from __future__ import annotations

from collections.abc import Sequence


class UsageError(ValueError):
    """One or more problems, each a sentence with rule, value and remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
