"""What a person is told: mistakes, all at once and before any work starts; and why it stopped."""

from __future__ import annotations

from collections.abc import Sequence


class UsageError(ValueError):
    """One or more problems, each a sentence with rule, value and remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _ReasonError(RuntimeError):
    """Why, in one line that a sentence is made around: a full stop of its own is left away."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason.removesuffix("."))


class StoppedError(_ReasonError):
    """A sweep cannot go on now: why, in one line. Nothing that was finished is lost."""


class EvaluationError(_ReasonError):
    """The winner could not be re-trained or scored; the trials are not touched by it."""
