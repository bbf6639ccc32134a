"""What a task's models are judged by: its protocol, as a list of test splits."""

from __future__ import annotations

from dataclasses import dataclass

from search.evaluation.record import Part
from trainables.data.base import DataError
from trainables.data.class_subsets import Half
from trainables.data.registry import SHIFTS
from trainables.trial import Episode, TaskSpec


@dataclass(frozen=True)
class EvaluationSet:
    """One test split, to be read once, and whom it judges."""

    target: str
    """The data set whose test split is read."""
    sources: tuple[str, ...]
    """The data sets whose models are judged by it."""
    halves: tuple[Half, ...] = ("all",)
    """The classes among which its images are told apart; one result each."""
    shift: bool = False
    """Whether its classes are among the source's, and are to be told apart by the model's own
    classifier."""

    def part(self, half: Half) -> Part:
        """What one of the results is of."""
        if half != "all":
            return half
        if self.shift:
            return "shift"
        return "test" if self.target in self.sources else "target"

    def judges(self, episode: Episode) -> bool:
        """Whether a model trained on this cell is judged."""
        return episode.dataset in self.sources


def evaluation_sets(task: TaskSpec) -> tuple[EvaluationSet, ...]:
    """All test splits that the evaluation reads; raises `DataError` where the protocol has none."""
    match task.protocol:
        case "few-shot":
            return tuple(EvaluationSet(name, (name,)) for name in task.datasets)
        case "base-to-new":
            return tuple(EvaluationSet(name, (name,), ("base", "new")) for name in task.datasets)
        case "domain-generalization":
            source = task.datasets[0]
            return (
                EvaluationSet(source, (source,)),
                *(EvaluationSet(name, (source,), shift=True) for name in _shifts(task)),
            )
        case "cross-dataset":
            return tuple(EvaluationSet(name, task.sources) for name in task.datasets)


def _shifts(task: TaskSpec) -> tuple[str, ...]:
    """Those that are named, or all that there are."""
    source, named = task.datasets[0], task.datasets[1:]
    known = SHIFTS.get(source, ())
    if not known:
        raise DataError(
            f"--protocol domain-generalization needs a data set that has shifts, got '{source}': "
            f"use one of {', '.join(SHIFTS)}, or --protocol cross-dataset."
        )
    if others := [name for name in named if name not in known]:
        raise DataError(
            f"The shifts of {source} are {', '.join(known)}, got '{others[0]}': name one of them, "
            "or none to take all."
        )
    return named or known
