"""What the evaluation at the end of a sweep found: a record, without the means to make one."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from search.evaluation.statistics import harmonic, harmonic_of_means, mean_of_harmonics
from trainables.protocols import Protocol
from trainables.storage import Storage

EVALUATION = "evaluation.json"
READS = "test_reads.jsonl"

Label = Literal["zero-shot", "paper", "winner"]

Part = Literal["test", "base", "new", "shift", "target"]
"""What of a data set was judged: all of its test split, one half of its classes among themselves,
or a data set that nothing was trained on (`shift`: another look of the same classes)."""


@dataclass(frozen=True)
class Score:
    """A configuration's test accuracy on one data set, as fractions."""

    label: Label
    """What was judged."""
    values: tuple[float, ...]
    """One accuracy a fresh draw."""
    dataset: str
    """What it was trained on."""
    shots: int
    """With how many images a class."""
    target: str
    """Whose test images it was judged by."""
    part: Part
    """Which of them."""
    images: int
    """How many these are."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)


@dataclass(frozen=True)
class Evaluation:
    """What the sweep found, on data that it was not chosen on."""

    winner: int
    """Number of the winning trial."""
    validation: float
    """The winner's value in the search."""
    seeds: tuple[int, ...]
    """Seeds of the fresh draws."""
    protocol: Protocol
    """What was judged."""
    scores: tuple[Score, ...]
    """Of the zero-shot model, the paper's setting and the winner, on each data set."""

    @property
    def identity(self) -> str:
        """In files that belong to it, so that another evaluation's are told apart."""
        return json.dumps({"winner": self.winner, "seeds": self.seeds})

    def of(self, label: Label, part: Part | None = None) -> list[Score]:
        """The scores of that name."""
        return [s for s in self.scores if s.label == label and part in (None, s.part)]

    @property
    def images(self) -> int:
        """Test images, each counted once."""
        return sum({(s.target, s.part): s.images for s in self.scores}.values())

    def figure(self, label: Label) -> tuple[float, ...]:
        """The protocol's one figure, for each fresh draw.

        `few-shot`: the mean over data sets and shots. `base-to-new`: the harmonic mean of the
        averages over base and over new classes. The others: the mean over what was not trained on.
        """
        if self.protocol == "base-to-new":
            pairs = zip(self.average(label, "base"), self.average(label, "new"), strict=True)
            return tuple(harmonic(base, new) for base, new in pairs)
        part: dict[Protocol, Part] = {
            "few-shot": "test",
            "domain-generalization": "shift",
            "cross-dataset": "target",
        }
        return self.average(label, part[self.protocol])

    def average(self, label: Label, part: Part) -> tuple[float, ...]:
        """The mean over data sets and shots of one part, for each fresh draw."""
        rows = [score.values for score in self.of(label, part)]
        return tuple(statistics.fmean(column) for column in zip(*rows, strict=True))

    def mean_of_harmonics(self, label: Label) -> float:
        """`base-to-new`: the mean over data sets of each one's harmonic mean, the other convention;
        each half's accuracy is its mean over draws."""
        return mean_of_harmonics(*self._halves(label))

    def harmonic_of_means(self, label: Label) -> float:
        """`base-to-new`: the harmonic mean of the averages over data sets and draws."""
        return harmonic_of_means(*self._halves(label))

    def _halves(self, label: Label) -> tuple[list[float], list[float]]:
        """Mean accuracies on base and on new classes, data set by data set."""
        base, new = (
            {(s.dataset, s.shots): s.mean for s in self.of(label, part)} for part in _HALVES
        )
        return list(base.values()), [new[key] for key in base]

    def summary(self) -> dict[str, float]:
        """As metrics of the sweep: the figure, its deviation, and every data set's mean."""
        metrics = {"val/accuracy_winner": self.validation}
        for label in get_args(Label):
            name = label.replace("-", "_")
            figure = self.figure(label)
            metrics[f"test/accuracy_{name}"] = statistics.fmean(figure)
            if len(figure) > 1:
                metrics[f"test/deviation_{name}"] = statistics.stdev(figure)
            if self.protocol == "base-to-new":
                metrics[f"test/harmonic_of_means_{name}"] = self.harmonic_of_means(label)
                metrics[f"test/mean_of_harmonics_{name}"] = self.mean_of_harmonics(label)
                for part in _HALVES:
                    metrics[f"test/{part}_{name}"] = statistics.fmean(self.average(label, part))
        if len(self.of("winner")) > 1:
            for score in self.scores:
                metrics[metric_name(score)] = score.mean
        return metrics

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Evaluation:
        """The inverse of `dataclasses.asdict`."""
        scores = tuple(Score(**(s | {"values": tuple(s["values"])})) for s in plain["scores"])
        return cls(**(plain | {"scores": scores, "seeds": tuple(plain["seeds"])}))


_HALVES: tuple[Part, Part] = ("base", "new")


def metric_name(score: Score) -> str:
    """A score's name among the metrics of its sweep, e.g. `test/dtd/16shot/base_winner`."""
    target = "".join(c if c.isalnum() or c in "._-" else "_" for c in score.target)
    return f"test/{target}/{score.shots}shot/{score.part}_{score.label.replace('-', '_')}"


def read_evaluation(sweep: Storage) -> Evaluation | None:
    """The evaluation in a sweep's folder, if there is one that can be read."""
    try:
        return Evaluation.from_dict(json.loads(sweep.read(EVALUATION)))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True)
class Read:
    """One read of a test split."""

    time: float
    """Unix time."""
    dataset: str
    """Whose split it was."""
    judged: int
    """How many models it was for."""


def record_read(sweep: Storage, dataset: str, judged: Sequence[tuple[object, ...]]) -> None:
    """Append a read to the sweep's list, for good, before any image is given."""
    entry = {"time": time.time(), "dataset": dataset, "judged": judged}
    before = sweep.read_log(READS, owner=False)
    # What a power cut has left of a line must not swallow this one.
    start = b"\n" if before and not before.endswith(b"\n") else b""
    sweep.append(READS, start + json.dumps(entry).encode() + b"\n")


def list_reads(sweep: Storage, owner: bool = True) -> list[Read | None]:
    """Every read of a test split, in order; None for a line that cannot be read: a power cut leaves
    such a line, before the images were given. `owner` as for `Storage.read_log`."""
    return [_read(line) for line in sweep.read_log(READS, owner).splitlines()]


def _read(line: bytes) -> Read | None:
    try:
        plain = json.loads(line)
        return Read(float(plain["time"]), str(plain["dataset"]), len(plain["judged"]))
    except (ValueError, TypeError, KeyError):
        return None


def reads_of_test(sweep: Storage) -> dict[str, int]:
    """How often the sweep has read each data set's test split."""
    return dict(Counter(read.dataset for read in list_reads(sweep) if read is not None))
