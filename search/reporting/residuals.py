"""Magnitude of TaskRes residuals against shots and task difficulty (section 4.4 of the paper).

Notation: K classes, x a residual [K, d], alpha its weight.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from torch import Tensor

from search.evaluation.statistics import summary
from search.reporting.artifacts import winners
from search.reporting.evaluated import place_name
from search.reporting.figures import Figure, draw, logarithmic, look, plain
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table

Magnitude = Callable[[Tensor], float]

MAGNITUDES: dict[str, Magnitude] = {
    "mean |x|": lambda x: x.abs().mean().item(),
    "mean |x_k|_2": lambda x: torch.linalg.vector_norm(x, dim=-1).mean().item(),
}
"""Two definitions of the magnitude, which the paper leaves undefined: the mean over all elements,
and the mean over classes of the Euclidean norm. Both are shown with and without alpha."""


@dataclass(frozen=True)
class Measured:
    """The winner's residual on one draw."""

    sweep: str
    """Name of the sweep."""
    dataset: str
    """Training data set."""
    shots: int
    """Training images per class."""
    seed: int
    """Seed of the draw."""
    classes: int
    """Number of classes (K)."""
    alpha: float
    """Weight, fixed or learned."""
    sizes: dict[str, float]
    """Magnitudes by definition, without and with alpha."""
    difficulty: float | None
    """(1 / K) / zero-shot accuracy; None if the zero-shot model was not evaluated."""


def measure(source: Source) -> list[Measured]:
    """Measure every text residual of the winner."""
    found = []
    for learned in winners(source):
        residual = learned.residual()
        if residual is None:
            continue
        x, alpha = residual
        sizes = {name: size(x) for name, size in MAGNITUDES.items()}
        weighted = {f"alpha {name}": alpha * size for name, size in sizes.items()}
        episode = learned.episode
        found.append(
            Measured(
                source.name,
                episode.dataset,
                episode.shots,
                episode.seed,
                len(x),
                alpha,
                sizes | weighted,
                _difficulty(source, episode.dataset, episode.shots, len(x)),
            )
        )
    return found


def residual_section(sources: Sequence[Source]) -> Section | None:
    """Build table and figures; None if no winner has a text residual."""
    found = [m for source in sources for m in measure(source)]
    if not found:
        return None
    learns = any(s.best and s.best.config["method_config"].get("learn_alpha") for s in sources)
    notes = (
        "Relative transfer difficulty is (1 / K) / zero-shot accuracy, with K classes: chance "
        "accuracy divided by the accuracy of the zero-shot model. The paper does not define the "
        "magnitude of a residual; two definitions are shown, each without and with the weight "
        "alpha.",
        *(["The winner's alpha is learned; the table shows its final value."] * learns),
    )
    figures = []
    if len({m.shots for m in found}) > 1:
        figures.append(_magnitude_per_shot(found))
        if learns:
            figures.append(_alpha_per_shot(found))
    if any(m.difficulty is not None for m in found):
        figures.append(_against_difficulty(found))
    return Section("residuals", "Residuals", notes, (_table(found),), tuple(figures))


def _difficulty(source: Source, dataset: str, shots: int, classes: int) -> float | None:
    if source.judged is None:
        return None
    scores = [
        score.mean
        for score in source.judged.of("zero-shot")
        if (score.dataset, score.shots) == (dataset, shots) and score.part in ("test", "base")
        if score.target == dataset
    ]
    return 1 / classes / scores[0] if scores and scores[0] > 0 else None


def _grouped(found: Sequence[Measured]) -> dict[tuple[str, str, int], list[Measured]]:
    """Group the draws by sweep, data set and number of shots."""
    groups: dict[tuple[str, str, int], list[Measured]] = {}
    for one in found:
        groups.setdefault((one.sweep, one.dataset, one.shots), []).append(one)
    return groups


def _table(found: Sequence[Measured]) -> Table:
    names = list(found[0].sizes)
    rows = []
    for (sweep, dataset, shots), group in _grouped(found).items():
        sizes = [_spread([one.sizes[name] for one in group]) for name in names]
        difficulty = group[0].difficulty
        rows.append(
            (
                sweep,
                place_name(dataset, dataset),
                str(shots),
                str(group[0].classes),
                "-" if difficulty is None else f"{difficulty:.4f}",
                _spread([one.alpha for one in group]),
                *sizes,
            )
        )
    headings = ("sweep", "data set", "shots", "K", "difficulty", "alpha", *names)
    note = "Mean and sample standard deviation over the draws."
    return Table("residuals", "The winner's residuals", headings, tuple(rows), note, labels=2)


def _spread(values: Sequence[float]) -> str:
    found = summary(values)
    return f"{found.mean:.4f}" + ("" if found.deviation is None else f" ± {found.deviation:.4f}")


def _magnitude_per_shot(found: Sequence[Measured]) -> Figure:
    caption = (
        "Mean over classes of the residual's norm, without alpha. Bars: sample standard deviation."
    )
    return _per_shot(
        *("residual-shots", "Residual magnitude per shot", caption, "mean |x_k|_2 (feature units)"),
        found,
        lambda m: m.sizes["mean |x_k|_2"],
    )


def _alpha_per_shot(found: Sequence[Measured]) -> Figure:
    caption = "Weight of the residual after training. Bars: sample standard deviation over draws."
    return _per_shot(
        *("alpha-shots", "Learned alpha per shot", caption, "alpha (factor)"),
        found,
        lambda m: m.alpha,
    )


def _per_shot(
    name: str,
    title: str,
    caption: str,
    unit: str,
    found: Sequence[Measured],
    value: Callable[[Measured], float],
) -> Figure:
    def paint(axes: Axes) -> None:
        groups = _grouped(found)
        lines = list(dict.fromkeys((sweep, dataset) for sweep, dataset, _ in groups))
        for i, (sweep, dataset) in enumerate(lines):
            colour, marker = look(i)
            shots = sorted(n for s, d, n in groups if (s, d) == (sweep, dataset))
            values = [[value(m) for m in groups[sweep, dataset, n]] for n in shots]
            axes.errorbar(
                shots,
                [statistics.fmean(draws) for draws in values],
                [summary(draws).deviation or 0.0 for draws in values],
                color=colour,
                marker=marker,
                capsize=3,
                label=plain(f"{place_name(dataset, dataset)} ({sweep})"),
            )
        axes.set_xscale("log", base=2)
        ticks = sorted({m.shots for m in found})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set(xlabel="shots (images per class)", ylabel=unit)

    return draw(name, title, caption, paint)


def _against_difficulty(found: Sequence[Measured]) -> Figure:
    def paint(axes: Axes) -> None:
        names = list(found[0].sizes)
        groups = list(_grouped([m for m in found if m.difficulty is not None]).values())
        for i, name in enumerate(names):
            colour, marker = look(i)
            axes.scatter(
                [group[0].difficulty or 0.0 for group in groups],
                [statistics.fmean(one.sizes[name] for one in group) for group in groups],
                color=colour,
                marker=marker,
                s=26,
                label=name,
            )
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        axes.set(
            xlabel="relative transfer difficulty (ratio)",
            ylabel="residual magnitude (feature units)",
        )

    caption = "One point per data set and number of shots: the mean over draws."
    return draw("residual-difficulty", "Difficulty and residual magnitude", caption, paint)
