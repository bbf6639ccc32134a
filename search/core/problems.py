"""Exceptions for users: invalid input, a stopped sweep, a failed evaluation."""

from __future__ import annotations

from collections.abc import Sequence


class UsageError(ValueError):
    """Invalid input: one or more problems, each one line with rule, value and fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _ReasonError(RuntimeError):
    """An error with a one-line reason, without a final full stop, for use inside a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason.removesuffix("."))


class StoppedError(_ReasonError):
    """The sweep cannot continue now. Finished trials are kept."""


class EvaluationError(_ReasonError):
    """The winner could not be trained again or evaluated. The trials are not affected."""
