"""What the evaluation at the end of a sweep found: a record, without the means to make one."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any, Literal

from trainables.storage import Storage

EVALUATION = "evaluation.json"
READS = "test_reads.jsonl"

Label = Literal["zero-shot", "paper", "winner"]


@dataclass(frozen=True)
class Score:
    """Mean and spread of a configuration's test accuracy over the fresh draws, as fractions."""

    label: Label
    """What was judged."""
    values: tuple[float, ...]
    """One accuracy a draw."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1); none for a single draw."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Evaluation:
    """What the sweep found, on data that it was not chosen on."""

    winner: int
    """Number of the winning trial."""
    validation: float
    """The winner's value in the search."""
    seeds: tuple[int, ...]
    """Seeds of the fresh draws."""
    images: int
    """Test images."""
    scores: tuple[Score, ...]
    """Zero-shot, paper's setting, winner."""

    def score(self, label: Label) -> Score:
        """The score of that name."""
        return next(score for score in self.scores if score.label == label)

    def summary(self) -> dict[str, float]:
        """As metrics of the sweep."""
        metrics = {"val/accuracy_winner": self.validation}
        for score in self.scores:
            name = score.label.replace("-", "_")
            metrics[f"test/accuracy_{name}"] = score.mean
            if score.deviation is not None:
                metrics[f"test/deviation_{name}"] = score.deviation
        return metrics

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Evaluation:
        """The inverse of `dataclasses.asdict`."""
        scores = tuple(Score(s["label"], tuple(s["values"])) for s in plain["scores"])
        return cls(**(plain | {"scores": scores, "seeds": tuple(plain["seeds"])}))


def read_evaluation(sweep: Storage) -> Evaluation | None:
    """The evaluation in a sweep's folder, if there is one that can be read."""
    try:
        return Evaluation.from_dict(json.loads(sweep.read(EVALUATION)))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def test_reads(sweep: Storage) -> int:
    """How often the sweep has read the test split."""
    return sweep.read_log(READS).count(b"\n")
