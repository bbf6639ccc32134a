"""The evaluated predictions: images that models classify differently, accuracy per class,
confusion, and calibration.

Calibration: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599),
section 2. Notation: n images, c classes, M bins; acc and conf the accuracy and the mean confidence
of a bin's images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from search.evaluation.examples import SIDE, Example
from search.evaluation.predictions import ModelPredictions, PredictionTable
from search.evaluation.record import LABELS, Label
from search.reporting.accuracy import place_name
from search.reporting.document import Figure, Gallery, Picture, Section, Table, mean_of, percent
from search.reporting.figures import GREY, axis, heatmap, look, plain, series
from search.reporting.source import Source
from trainables.core.protocols import Part

BINS = 15
"""Number of bins of confidence (M), as in the paper."""
MOST_CLASSES = 30
"""Largest number of classes that are all shown; of more, only those at both ends."""
_ENDS = 10
_MOST_PAIRS = 15
_PARTS: dict[Part, str] = {
    "test": "",
    "base": ", base classes",
    "new": ", new classes",
    "shift": ", shifted",
    "target": "",
}


@dataclass(frozen=True)
class EvaluatedEpisode:
    """A prediction table for models trained on one data set with one number of shots."""

    sheet: PredictionTable
    """Test images and their true classes."""
    dataset: str
    """Training data set."""
    shots: int
    """Training images per class."""
    draws: Mapping[Label, tuple[ModelPredictions, ...]]
    """Predictions by label, one per draw, in the same order of draws for every label."""

    @property
    def name(self) -> str:
        """Name in table rows and titles."""
        where = place_name(self.dataset, self.sheet.target)
        return f"{where}{_PARTS[self.sheet.part]}, {self.shots} shot{'s' * (self.shots > 1)}"

    def counts(self, label: Label) -> NDArray[np.int64]:
        """Count the images of class i that are predicted as class j, over all draws: [c, c]."""
        side = len(self.sheet.classes)
        total = np.zeros(side * side, np.int64)
        for answers in self.draws[label]:
            cells = self.sheet.truth.astype(np.int64) * side + answers.prediction
            total += np.bincount(cells, minlength=side * side)
        return total.reshape(side, side)


def episodes_of(sheets: Sequence[PredictionTable]) -> list[EvaluatedEpisode]:
    """Return the evaluated episodes of all tables, in the order of the tables."""
    found = []
    for sheet in sheets:
        models: dict[tuple[str, int], dict[Label, list[ModelPredictions]]] = {}
        for answers in sheet.answers:
            draws = models.setdefault((answers.dataset, answers.shots), {})
            draws.setdefault(answers.label, []).append(answers)
        for (dataset, shots), draws in models.items():
            ordered = {
                label: tuple(sorted(draws[label], key=lambda a: a.seed))
                for label in get_args(Label)
                if label in draws
            }
            found.append(EvaluatedEpisode(sheet, dataset, shots, ordered))
    return found


def shown_episode(found: Sequence[EvaluatedEpisode]) -> EvaluatedEpisode:
    """Return the episode that figures show: the first of those with the most shots."""
    return max(found, key=lambda episode: episode.shots)


def prediction_sections(source: Source) -> list[Section]:
    """Build all sections on predictions; instead, why they are missing if files are damaged."""
    notes = list(source.images_problems)
    found = episodes_of(source.sheets)
    if notes and not found:
        notes.append(
            "The sections on right and wrong predictions, classes, confusion and calibration are "
            "therefore missing; the test split is not read again for them."
        )
    sections = [Section("images", "Test images", tuple(notes))] if notes else []
    if found:
        changes = changes_section(found, source.examples)
        sections += [changes, classes_section(found), calibration_section(found)]
    return sections


def _chosen(found: Sequence[EvaluatedEpisode]) -> tuple[str, ...]:
    """Return a note on which episode the figures show; empty if there is only one."""
    if len(found) == 1:
        return ()
    return (
        f"The figures show {shown_episode(found).name}: of {len(found)} evaluated rows, the first "
        "of those with the most shots.",
    )


# --- images that are classified differently ------------------------------------------------------


def changes_section(found: Sequence[EvaluatedEpisode], examples: Sequence[Example]) -> Section:
    """Build counts and example images of what the winner changes."""
    galleries = (
        _gallery(examples, True, "Correct with the winner, wrong with the zero-shot model"),
        _gallery(examples, False, "Correct with the zero-shot model, wrong with the winner"),
    )
    shown = tuple(g for g in galleries if g.pictures)
    notes = [
        "This section counts the test images that two models classify differently, which their "
        "accuracies alone do not show."
    ]
    if shown:
        notes.append(
            f"The pictures are evenly spaced samples of all such images of a test split (for the "
            f"first draw with the most shots), stored with at most {SIDE} pixels per side."
        )
    else:
        notes.append(
            "There are no pictures: the data set contains only features, or the two models agree "
            "on every image."
        )
    rows = []
    for episode in found:
        for baseline in (label for label in episode.draws if label != "winner"):
            pairs = zip(episode.draws[baseline], episode.draws["winner"], strict=True)
            counts = [_four(episode, was, now) for was, now in pairs]
            cells = (_mean_count(sum(column), len(counts)) for column in zip(*counts, strict=True))
            images = str(len(episode.sheet.truth))
            rows.append((episode.name, LABELS[baseline], images, *cells))
    headings = (
        *("judged on", "winner against", "images", "wrong to right", "right to wrong"),
        *("both right", "both wrong"),
    )
    note = "Means over the draws; both models of a pair are from the same draw."
    title = "What the winner changes (test images)"
    table = Table("changes", title, headings, tuple(rows), note, labels=2)
    return Section("changes", "Right and wrong", tuple(notes), (table,), galleries=shown)


def _gallery(examples: Sequence[Example], gained: bool, title: str) -> Gallery:
    pictures = [
        Picture(e.png, _caption(e), e.file or "a test image")
        for e in examples
        if e.gained == gained
    ]
    return Gallery(title, tuple(pictures))


def _caption(example: Example) -> str:
    who, said = ("zero-shot", example.before) if example.gained else ("winner", example.after)
    return f"{example.truth}; {who}: {said}"


def _mean_count(total: int, draws: int) -> str:
    """Format the mean of counts, which is a whole number for one draw."""
    return str(total) if draws == 1 else f"{total / draws:.1f}"


def _four(episode: EvaluatedEpisode, was: ModelPredictions, now: ModelPredictions) -> list[int]:
    before, after = episode.sheet.right(was), episode.sheet.right(now)
    kinds = (~before & after, before & ~after, before & after, ~before & ~after)
    return [int(kind.sum()) for kind in kinds]


# --- classes and their confusion -----------------------------------------------------------------


@dataclass(frozen=True)
class _Class:
    """One class of an episode."""

    name: str
    images: int
    accuracy: dict[Label, float | None]

    @property
    def gain(self) -> float | None:
        """Gain of the winner over the zero-shot model, a fraction; None without test images."""
        first, last = self.accuracy["zero-shot"], self.accuracy["winner"]
        return None if first is None or last is None else last - first

    def cells(self) -> tuple[str, ...]:
        """Return the cells of its row, in the order of `_headings`."""
        gain = "-" if self.gain is None else f"{100 * self.gain:+z.2f}"
        return (self.name, str(self.images), *map(percent, self.accuracy.values()), gain)


def _headings(episode: EvaluatedEpisode) -> tuple[str, ...]:
    return ("class", "images", *(LABELS[n] for n in episode.draws), "gain over zero-shot")


def classes_section(found: Sequence[EvaluatedEpisode]) -> Section:
    """Build the accuracy of each class and the winner's confusion for one episode, and a file with
    the classes of all episodes."""
    episode = shown_episode(found)
    ranked = _ranked(episode)
    few = len(ranked) <= MOST_CLASSES
    seen = [one for one in ranked if one.gain is not None]
    shown = ranked if few else [*seen[:_ENDS], *seen[_ENDS:][-_ENDS:]]
    which = "" if few else f", the {_ENDS} that gain most and the {_ENDS} that lose most"
    table = Table(
        "classes",
        f"Test accuracy of each class: {episode.name}{which} (%)",
        _headings(episode),
        tuple(one.cells() for one in shown),
        "Means over the draws; the gain is in points.",
    )
    notes = (
        *_chosen(found),
        f"All {sum(len(p.sheet.classes) for p in found)} evaluated classes are listed in "
        "tables/classes-all.csv.",
    )
    every = Table(
        "classes-all",
        "Test accuracy of each class (%)",
        ("judged on", *_headings(found[0])),
        tuple((one.name, *row.cells()) for one in found for row in _ranked(one)),
        labels=2,
    )
    figures = (_class_figure(shown, episode, which), *[_confusion(episode)] * few)
    tables = (table, confusion_table(episode))
    return Section("classes", "Classes", notes, tables, figures, files=(every,))


def _ranked(episode: EvaluatedEpisode) -> list[_Class]:
    """Return the classes by decreasing gain; those without test images come last."""
    truth, count = episode.sheet.truth, len(episode.sheet.classes)
    images = np.bincount(truth, minlength=count)
    shares: dict[Label, list[float | None]] = {}
    for label, draws in episode.draws.items():
        right, whole = np.diagonal(episode.counts(label)), images * len(draws)
        shares[label] = [int(r) / int(n) if n else None for r, n in zip(right, whole, strict=True)]
    found = [
        _Class(name, int(images[i]), {label: share[i] for label, share in shares.items()})
        for i, name in enumerate(episode.sheet.classes)
    ]
    seen = [one for one in found if one.gain is not None]
    return sorted(seen, key=lambda one: -(one.gain or 0.0)) + [c for c in found if c.gain is None]


def _class_figure(shown: Sequence[_Class], episode: EvaluatedEpisode, which: str) -> Figure:
    data = [
        series(
            LABELS[label],
            [100 * v if (v := one.accuracy[label]) is not None else None for one in shown],
            range(len(shown)),
            look(place),
            text=[plain(one.name) for one in shown],
            hovertemplate="%{text}: %{x:.2f} %<extra></extra>",
        )
        for place, label in enumerate(episode.draws)
    ]
    names = [plain(one.name) for one in shown]
    layout = {
        "height": 150 + 22 * len(shown),
        "xaxis": axis("test accuracy (% of the class's images)"),
        "yaxis": {"tickvals": [*range(len(shown))], "ticktext": names, "autorange": "reversed"},
    }
    caption = f"{episode.name}{which}; largest gain on top. Means over the draws."
    return Figure("classes", "Accuracy of each class", caption, data, layout)


def confusion_table(episode: EvaluatedEpisode) -> Table:
    """Build the table of the winner's most frequent confusions, with the other models' counts."""
    names, draws = episode.sheet.classes, len(episode.draws["winner"])
    matrices = {label: episode.counts(label) for label in episode.draws}
    winner = matrices["winner"]
    images = winner.sum(1)
    wrong = winner * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    rows = []
    for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[i, j]:
            cells = (_mean_count(matrices[label][i, j], draws) for label in matrices)
            rows.append((names[i], names[j], *cells, percent(wrong[i, j] / images[i])))
    title = f"The winner's most frequent confusions: {episode.name} (images)"
    models = (LABELS[label] for label in matrices)
    headings = ("class", "taken for", *models, "winner: % of the class")
    return Table("confusion", title, headings, tuple(rows), "Means over the draws.", labels=2)


def _confusion(episode: EvaluatedEpisode) -> Figure:
    names, matrix = episode.sheet.classes, episode.counts("winner")
    totals = matrix.sum(1)
    shares = [  # None for an empty cell, and for a class without test images
        [100 * int(n) / int(total) if n else None for n in row]
        for row, total in zip(matrix, totals, strict=True)
    ]
    titles = ("prediction (class)", "truth (class)")
    data, layout = heatmap(shares, (names, names), titles, 100, "%{z:.2~r}")
    data["hovertemplate"] = "%{z:.1f} % of this class<extra></extra>"
    layout["coloraxis"]["colorbar"] = {"title": {"text": "% of the class", "side": "right"}}
    caption = f"{episode.name}; all draws together. Each row sums to 100 %; empty cells are 0."
    return Figure("confusion", "The winner's confusion", caption, [data], layout, wide=560)


# --- calibration ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """Images binned by confidence into ((m - 1) / M, m / M]."""

    images: NDArray[np.int64]
    """[M], number of images."""
    right: NDArray[np.int64]
    """[M], number of correctly predicted images."""
    confidence: NDArray[np.float64]
    """[M], sum of confidences."""

    @property
    def error(self) -> float:
        """ECE: sum over bins of (images / n) |acc - conf| (equation 3), a fraction."""
        gaps = np.abs(self.right - self.confidence)
        return float(gaps.sum() / self.images.sum())


def reliability(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> Reliability:
    """Bin images by `confidence` [n] (fractions); `right` [n] marks correct predictions."""
    exact = confidence.astype(np.float64)
    place = np.searchsorted(np.arange(1, BINS) / BINS, exact, side="left")
    return Reliability(
        np.bincount(place, minlength=BINS),
        np.bincount(place[right], minlength=BINS),
        np.bincount(place, exact, minlength=BINS).astype(np.float64),
    )


def calibration_section(found: Sequence[EvaluatedEpisode]) -> Section:
    """Build the table of all episodes and the reliability diagram of one."""
    rows = []
    for episode in found:
        right = episode.sheet.right
        for label, draws in episode.draws.items():
            errors = [reliability(a.confidence, right(a)).error for a in draws]
            accuracies = [episode.sheet.accuracy(a) for a in draws]
            sure = [float(a.confidence.mean(dtype=np.float64)) for a in draws]
            rows.append((episode.name, LABELS[label], *map(mean_of, (accuracies, sure, errors))))
    headings = ("judged on", "model", "accuracy", "mean confidence", "ECE")
    note = "Mean and sample standard deviation over the draws."
    table = Table("calibration", "Calibration (%)", headings, tuple(rows), note, labels=2)
    notes = (
        "A model is calibrated if p % of its predictions with a confidence of p % are correct. ECE "
        f"is the mean gap between accuracy and confidence over {BINS} equally wide bins of "
        "confidence, weighted by number of images (Guo et al. 2017, arXiv:1706.04599). Confidence "
        "is the softmax probability of the prediction, without rescaling.",
        *_chosen(found),
    )
    figure = _reliability_figure(shown_episode(found))
    return Section("calibration", "Calibration", notes, (table,), (figure,))


def _reliability_figure(episode: EvaluatedEpisode) -> Figure:
    diagonal = series("calibrated", [0, 100], [0, 100], (GREY, ""), "lines", line={"dash": "dash"})
    data = [diagonal]
    for place, (label, draws) in enumerate(episode.draws.items()):
        found = reliability(
            np.concatenate([a.confidence for a in draws]),
            np.concatenate([episode.sheet.right(a) for a in draws]),
        )
        there = found.images > 0
        images = found.images[there]
        sure, right = found.confidence[there] / images, found.right[there] / images
        text = [f"{100 * n / found.images.sum():.1f} % of the images" for n in images]
        more = {"text": text, "hovertemplate": "%{x:.1f} %: %{y:.1f} %, %{text}<extra></extra>"}
        name, style = LABELS[label], look(place)
        xs, ys = (100 * sure).tolist(), (100 * right).tolist()
        data.append(series(name, xs, ys, style, "lines+markers", **more))
    layout = {
        "height": 420,
        "xaxis": axis("confidence of the prediction (%)", range=[0, 101]),
        "yaxis": axis("test accuracy (%)", range=[0, 101]),
    }
    caption = (
        f"{episode.name}; all draws together. Accuracy against mean confidence of the non-empty "
        f"bins (of {BINS}); points below the dashed line are overconfident."
    )
    return Figure("reliability", "Reliability", caption, data, layout)
