"""The record of an evaluation, `evaluation.json`, and of every read of a test split."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, MinLen

from search.evaluation.statistics import (
    Difference,
    harmonic,
    harmonic_of_means,
    mean_of_harmonics,
    paired,
)
from search.selection.record import Selection
from trainables.core.protocols import Part, Protocol
from trainables.core.records import Count, Fraction01, Positive, RecordError, from_plain, parse_json
from trainables.core.storage import Storage

EVALUATION = "evaluation.json"
READS = "test_reads.jsonl"

Label = Literal["zero-shot", "start", "paper", "winner"]

LABELS: dict[Label, str] = {
    "zero-shot": "zero-shot",
    "start": "the starting model",
    "paper": "the paper's setting",
    "winner": "the winner",
}
"""The evaluated models in words; `start` is the model that the last stage of training begins with,
if there are several stages."""


@dataclass(frozen=True)
class Score:
    """Test accuracy of one configuration on one data set."""

    label: Label
    """The model."""
    values: tuple[Fraction01, ...]
    """Accuracy per draw, in the order of the evaluation's seeds."""
    dataset: str
    """What it was trained on."""
    shots: Positive
    """Training images per class."""
    target: str
    """Whose test images were classified."""
    part: Part
    """Which of them."""
    images: Positive
    """How many."""
    distinct: tuple[Count, ...] | None = None
    """Positions in `values` of draws with different training images; None if all are different."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def distinct_values(self) -> tuple[float, ...]:
        """The values of draws with different training images: the sample for a deviation."""
        if self.distinct is None:
            return self.values
        return tuple(self.values[place] for place in self.distinct)


@dataclass(frozen=True)
class Comparison:
    """The difference of two models over the same test images."""

    label: Label
    """The model."""
    baseline: Label
    """The model that it is compared with."""
    difference: float
    """Difference of the protocol's figures, as a fraction."""
    half_width: Annotated[float, Ge(0)]
    """Half its 95 % interval, with the test images as the sample."""
    changed: Count
    """Test images of which one model, in some draw, is right and the other wrong."""


@dataclass(frozen=True)
class Gain:
    """A model's gain over a baseline, with the intervals that the data allows."""

    label: Label
    """The model."""
    baseline: Label
    """The model that it is compared with."""
    over_images: Difference
    """Interval with the test images as the sample."""
    over_draws: Difference | None
    """Interval with the draws of training images as the sample; None for a single draw."""
    changed: int
    """Test images of which one is right and the other wrong, see `Comparison`."""

    @property
    def mean(self) -> float:
        """The gain, as a fraction."""
        return self.over_images.mean

    @property
    def verdict(self) -> Literal["real", "loss", "none", "uncertain"]:
        """`real` or `loss` if every interval excludes 0, `none` if no image is classified
        differently, else `uncertain`."""
        if not self.changed:
            return "none"
        found = [self.over_images, *([self.over_draws] if self.over_draws else [])]
        if all(one.low is not None and one.low > 0 for one in found):
            return "real"
        if all(one.high is not None and one.high < 0 for one in found):
            return "loss"
        return "uncertain"

    def sentence(self) -> str:
        """Whether the gain is real, in one sentence."""
        over = f"over {LABELS[self.baseline]}"
        points = f"{100 * self.mean:+z.1f} points"
        match self.verdict:
            case "none":
                return f"There is no gain {over}: both are right on the same test images."
            case "real":
                return f"The gain {over} is real ({points}): {self._intervals('excludes')} 0."
            case "loss":
                return f"The loss {over.replace('over', 'against')} is real ({points}): " + (
                    f"{self._intervals('excludes')} 0."
                )
            case _:
                return f"A gain {over} is not certain ({points}): {self._intervals('includes')} 0."

    def _intervals(self, verb: str) -> str:
        """The intervals that `verb` (excludes, includes) is true of."""
        named = [("test images", self.over_images), ("draws", self.over_draws)]
        shown = [
            f"{what} [{100 * one.low:+z.1f}, {100 * one.high:+z.1f}]"
            for what, one in named
            if one is not None and one.low is not None and one.high is not None
            if (one.low <= 0 <= one.high) == (verb == "includes")
        ]
        plural = len(shown) > 1
        return f"the 95 % interval{'s' * plural} over {' and over '.join(shown)} " + (
            verb.removesuffix("s") if plural else verb
        )


@dataclass(frozen=True)
class Evaluation:
    """The test figures of a sweep's winner and its baselines."""

    winner: Count
    """Number of the winning trial."""
    validation: Fraction01
    """The winner's validation accuracy in the search."""
    seeds: Annotated[tuple[Count, ...], MinLen(1)]
    """Seeds of the draws, one per distinct set of training images."""
    protocol: Protocol
    """What was evaluated."""
    scores: tuple[Score, ...]
    """Scores of every model on every data set."""
    comparisons: tuple[Comparison, ...] = ()
    """Every model against those before it in `LABELS`."""
    requested: Positive = 1
    """How many draws were requested; more than there are seeds if some would be the same."""
    seen: Count = 0
    """How many of the draws have the training images of one of the search's draws."""
    inputs: str = ""
    """Digest of everything that the evaluation was made from."""
    selection: Selection | None = None
    """What the evaluated result consists of; None for the winning trial alone in an evaluation of
    an earlier version."""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that belong to it, by name."""
    format: Literal[2] = 2
    """Version of this record."""

    def __post_init__(self) -> None:
        """Raises `RecordError` for scores that do not fit the draws."""
        for place, score in enumerate(self.scores):
            if len(score.values) != len(self.seeds):
                raise RecordError(f"scores.{place}.values", "must have one value per seed")
            if score.distinct is not None and not (
                score.distinct and max(score.distinct) < len(score.values)
            ):
                raise RecordError(f"scores.{place}.distinct", "must be positions in values")

    @property
    def labels(self) -> tuple[Label, ...]:
        """The models that were evaluated, in the order of `LABELS`."""
        there = {score.label for score in self.scores}
        return tuple(label for label in get_args(Label) if label in there)

    def of(self, label: Label, part: Part | None = None) -> list[Score]:
        """The scores of a model."""
        return [s for s in self.scores if s.label == label and part in (None, s.part)]

    @property
    def images(self) -> int:
        """Number of test images, each counted once."""
        return sum({(s.target, s.part): s.images for s in self.scores}.values())

    def figure(self, label: Label) -> tuple[float, ...]:
        """The protocol's main figure, for each draw.

        `few-shot`: the mean over data sets and shots. `base-to-new`: the harmonic mean of the
        averages over base and over new classes. Others: the mean over data sets not trained on.
        """
        if self.protocol == "base-to-new":
            pairs = zip(self.average(label, "base"), self.average(label, "new"), strict=True)
            return tuple(harmonic(base, new) for base, new in pairs)
        return self.average(label, FIGURE_PART[self.protocol])

    def deviation(self, label: Label) -> float | None:
        """Sample standard deviation of the figure over draws; None for a single draw, and for the
        zero-shot model, which does not depend on draws."""
        figure = self.figure(label)
        several = len(figure) > 1 and label != "zero-shot"
        return statistics.stdev(figure) if several else None

    def average(self, label: Label, part: Part) -> tuple[float, ...]:
        """The mean over data sets and shots of one part, for each draw."""
        rows = [score.values for score in self.of(label, part)]
        return tuple(statistics.fmean(column) for column in zip(*rows, strict=True))

    def gain(self, label: Label, baseline: Label) -> Gain | None:
        """The gain of one model over another; None if they were not compared."""
        for one in self.comparisons:
            if (one.label, one.baseline) == (label, baseline):
                low, high = one.difference - one.half_width, one.difference + one.half_width
                several = len(self.seeds) > 1
                draws = paired(self.figure(label), self.figure(baseline)) if several else None
                over_images = Difference(one.difference, low, high)
                return Gain(label, baseline, over_images, draws, one.changed)
        return None

    @property
    def gains(self) -> tuple[Gain, ...]:
        """The winner's gain over each baseline."""
        found = (self.gain("winner", label) for label in self.labels if label != "winner")
        return tuple(gain for gain in found if gain is not None)

    @property
    def draws(self) -> str:
        """The draws in words, e.g. `fresh draws 4, 5, 6`."""
        seeds = ", ".join(map(str, self.seeds))
        if len(self.seeds) == 1:
            return f"one draw of training images (seed {seeds})"
        return f"draws {seeds}" if self.seen else f"fresh draws {seeds}"

    @property
    def draws_note(self) -> str:
        """A sentence for readers if the draws are fewer, or less fresh, than requested."""
        found = []
        if len(self.seeds) < self.requested:
            found.append(
                f"The {self.requested} requested seeds give {len(self.seeds)} distinct "
                f"{'set' if len(self.seeds) == 1 else 'sets'} of training images."
            )
        if self.seen:
            which = "These are" if self.seen == len(self.seeds) else f"{self.seen} of these are"
            found.append(f"{which} the training images of the search, not fresh ones.")
        if len(self.seeds) == 1:
            found.append("With a single draw there is no deviation and no interval over draws.")
        else:
            fixed = {
                (s.dataset, s.shots): len(s.distinct_values)
                for s in self.scores
                if s.label != "zero-shot" and len(s.distinct_values) < len(self.seeds)
            }
            found += [
                f"{dataset} with {shots} shots has {count} distinct "
                f"{'set' if count == 1 else 'sets'} of training images in {len(self.seeds)} draws."
                for (dataset, shots), count in fixed.items()
            ]
        return " ".join(found)

    def mean_of_harmonics(self, label: Label) -> float:
        """`base-to-new`: the mean over data sets of each one's harmonic mean (the alternative
        convention); each half's accuracy is its mean over draws."""
        return mean_of_harmonics(*self._halves(label))

    def harmonic_of_means(self, label: Label) -> float:
        """`base-to-new`: the harmonic mean of the averages over data sets and draws."""
        return harmonic_of_means(*self._halves(label))

    def _halves(self, label: Label) -> tuple[list[float], list[float]]:
        """Mean accuracies on base and on new classes, in the same order of data sets."""
        base, new = (
            {(s.dataset, s.shots): s.mean for s in self.of(label, part)} for part in _HALVES
        )
        return list(base.values()), [new[key] for key in base]

    def summary(self) -> dict[str, float]:
        """Metrics of the sweep: the figure, its deviation and intervals, every data set's mean."""
        metrics = {"val/accuracy_winner": self.validation}
        for label in self.labels:
            name = label.replace("-", "_")
            figure = self.figure(label)
            metrics[f"test/accuracy_{name}"] = statistics.fmean(figure)
            if (deviation := self.deviation(label)) is not None:
                metrics[f"test/deviation_{name}"] = deviation
            if self.protocol == "base-to-new":
                metrics[f"test/harmonic_of_means_{name}"] = self.harmonic_of_means(label)
                metrics[f"test/mean_of_harmonics_{name}"] = self.mean_of_harmonics(label)
                for part in _HALVES:
                    metrics[f"test/{part}_{name}"] = statistics.fmean(self.average(label, part))
        for gain in self.gains:
            over = f"over_{gain.baseline.replace('-', '_')}"
            metrics[f"test/gain_{over}"] = gain.mean
            for kind, interval in (("images", gain.over_images), ("draws", gain.over_draws)):
                if interval is not None and interval.low is not None and interval.high is not None:
                    metrics[f"test/gain_{over}_low_{kind}"] = interval.low
                    metrics[f"test/gain_{over}_high_{kind}"] = interval.high
        if len(self.of("winner")) > 1:
            for score in self.scores:
                metrics[metric_name(score)] = score.mean
        return metrics

    def to_json(self) -> bytes:
        """The content of `evaluation.json`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False).encode() + b"\n"


FIGURE_PART: dict[Protocol, Part] = {
    "few-shot": "test",
    "domain-generalization": "shift",
    "cross-dataset": "target",
}
"""The part whose average is the protocol's figure; for base-to-new it is made of two."""
_HALVES: tuple[Part, Part] = ("base", "new")


def metric_name(score: Score) -> str:
    """A score's name among the metrics of its sweep, e.g. `test/dtd/16shot/base_winner`."""
    target = "".join(c if c.isalnum() or c in "._-" else "_" for c in score.target)
    return f"test/{target}/{score.shots}shot/{score.part}_{score.label.replace('-', '_')}"


def read_evaluation(sweep: Storage) -> Evaluation | None:
    """The evaluation in a sweep's folder; None if there is none that this version can read."""
    try:
        return parse_evaluation(sweep.read(EVALUATION))
    except (FileNotFoundError, RecordError):
        return None


def parse_evaluation(data: bytes) -> Evaluation:
    """The content of `evaluation.json`; raises `RecordError`, which names the field."""
    return from_plain(Evaluation, parse_json(data))


# --- reads of test splits ------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """One read of a test split: a line of `test_reads.jsonl`."""

    time: Annotated[float, Ge(0)]
    """Unix time."""
    dataset: str
    """Whose split it was."""
    judged: tuple[Any, ...]
    """The models that it was for: label, data set, shots, seed of each."""
    evaluation: str = ""
    """Digest of the evaluation that it belongs to, see `Evaluation.inputs`."""


def record_read(
    sweep: Storage, dataset: str, judged: Sequence[tuple[object, ...]], evaluation: str = ""
) -> float:
    """Append a read to the list of reads, and return its time, by which `is_recorded` finds it.

    Only the sweep's driver may call this, before any image is read."""
    now = time.time()
    entry = {"time": now, "dataset": dataset, "judged": judged, "evaluation": evaluation}
    before = sweep.read_log(READS)
    # A partial line that a power cut has left must not swallow this one.
    start = b"\n" if before and not before.endswith(b"\n") else b""
    sweep.append(READS, start + json.dumps(entry).encode() + b"\n")
    return now


def is_recorded(sweep: Storage, dataset: str, moment: float) -> bool:
    """Whether a read of this data set is on record that began at `moment`."""
    reads = list_reads(sweep)
    return any(read and (read.dataset, read.time) == (dataset, moment) for read in reads)


def list_reads(sweep: Storage) -> list[Read | None]:
    """Every read of a test split, in order; None for a partial line, which a power cut leaves
    before any image is read."""
    return [_read(line) for line in sweep.read_log(READS).splitlines()]


def _read(line: bytes) -> Read | None:
    try:
        return from_plain(Read, parse_json(line))
    except RecordError:
        return None


def reads_of_test(sweep: Storage) -> dict[str, int]:
    """How many evaluations have read each data set's test split.

    An evaluation reads a split once per draw, and again what an interruption has cut short: none of
    these reads can change what is evaluated, so they count as one.
    """
    found: dict[str, set[object]] = {}
    for number, read in enumerate(list_reads(sweep)):
        if read is not None:
            found.setdefault(read.dataset, set()).add(read.evaluation or number)
    return {dataset: len(evaluations) for dataset, evaluations in found.items()}
