"""What the winner has learned: the magnitude of TaskRes residuals (section 4.4 of the paper), and
binary masks (figures 5 to 7 of R-AMT).

Notation: K classes, x a residual [K, d], alpha its weight.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from search.evaluation.statistics import summary
from search.reporting.accuracy import place_name
from search.reporting.artifacts import Learned, winners
from search.reporting.document import Figure, Section, Table
from search.reporting.figures import (
    COLOURED,
    ORANGE,
    Axis,
    axis,
    bars_above,
    heatmap,
    log_axis,
    look,
    series,
    shots_axis,
)
from search.reporting.source import Source

Magnitude = Callable[[Tensor], float]

MAGNITUDES: dict[str, Magnitude] = {
    "mean |x|": lambda x: x.abs().mean().item(),
    "mean |x_k|_2": lambda x: torch.linalg.vector_norm(x, dim=-1).mean().item(),
}
"""Two definitions of the magnitude, which the paper leaves undefined: the mean over all elements,
and the mean over classes of the Euclidean norm. Both are shown with and without alpha."""
BUDGET, FLIPPED, SPARSITY = "flip/budget", "mask/flipped", "mask/sparsity"
"""Metrics of trials whose method trains masks."""
_MOST_NAMES = 12  # rows of the overlap figure; more cannot be labelled legibly


# --- residuals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The winner's residual on one draw."""

    sweep: str
    """Name of the sweep."""
    dataset: str
    """Training data set."""
    shots: int
    """Training images per class."""
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
        own = learned.episode
        difficulty = _difficulty(source, own.dataset, own.shots, len(x))
        found.append(
            Measured(
                *(source.name, own.dataset, own.shots, len(x), alpha),
                sizes | weighted,
                difficulty,
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
    groups: dict[tuple[str, str, int], list[Measured]] = {}
    for one in found:
        groups.setdefault((one.sweep, one.dataset, one.shots), []).append(one)
    names = list(found[0].sizes)
    rows = tuple(
        (
            *(sweep, place_name(dataset, dataset), str(shots), str(group[0].classes)),
            "-" if (d := group[0].difficulty) is None else f"{d:.4f}",
            _spread([one.alpha for one in group]),
            *(_spread([one.sizes[name] for one in group]) for name in names),
        )
        for (sweep, dataset, shots), group in groups.items()
    )
    headings = ("sweep", "data set", "shots", "K", "difficulty", "alpha", *names)
    note = "Mean and sample standard deviation over the draws."
    table = Table("residuals", "The winner's residuals", headings, rows, note, labels=2)
    figures = _residual_figures(groups, learns)
    return Section("residuals", "Residuals", notes, (table,), tuple(figures))


def _difficulty(source: Source, dataset: str, shots: int, classes: int) -> float | None:
    scores = [
        score.mean
        for score in (source.judged.of("zero-shot") if source.judged else ())
        if (score.dataset, score.shots) == (dataset, shots) and score.part in ("test", "base")
        if score.target == dataset
    ]
    return 1 / classes / scores[0] if scores and scores[0] > 0 else None


def _spread(values: Sequence[float]) -> str:
    found = summary(values)
    return f"{found.mean:.4f}" + ("" if found.deviation is None else f" ± {found.deviation:.4f}")


def _residual_figures(
    groups: Mapping[tuple[str, str, int], Sequence[Measured]], learns: bool
) -> list[Figure]:
    figures = []
    if len({shots for _, _, shots in groups}) > 1:
        bars = "Bars: sample standard deviation over draws."
        size: Callable[[Measured], float] = lambda m: m.sizes["mean |x_k|_2"]  # noqa: E731
        figures.append(
            Figure(
                *("residual-shots", "Residual magnitude per shot"),
                f"Mean over classes of the residual's norm, without alpha. {bars}",
                *_per_shot(groups, size, "mean |x_k|_2 (feature units)"),
            )
        )
        if learns:
            figures.append(
                Figure(
                    *("alpha-shots", "Learned alpha per shot"),
                    f"Weight of the residual after training. {bars}",
                    *_per_shot(groups, lambda m: m.alpha, "alpha (factor)"),
                )
            )
    rated = [(group[0].difficulty, group) for group in groups.values() if group[0].difficulty]
    if rated:
        difficulties = [difficulty for difficulty, _ in rated if difficulty]
        means = {
            name: [statistics.fmean(one.sizes[name] for one in group) for _, group in rated]
            for name in rated[0][1][0].sizes
        }
        data = [series(n, difficulties, ys, look(i)) for i, (n, ys) in enumerate(means.items())]
        unit = "residual magnitude (feature units)"
        layout = {
            "xaxis": log_axis("relative transfer difficulty (ratio)", difficulties),
            "yaxis": log_axis(unit, [y for ys in means.values() for y in ys]),
        }
        caption = "One point per data set and number of shots: the mean over draws."
        title = "Difficulty and residual magnitude"
        figures.append(Figure("residual-difficulty", title, caption, data, layout))
    return figures


def _per_shot(
    groups: Mapping[tuple[str, str, int], Sequence[Measured]],
    value: Callable[[Measured], float],
    unit: str,
) -> tuple[list[dict[str, object]], dict[str, Axis]]:
    lines: dict[str, dict[int, list[float]]] = {}
    for (sweep, dataset, shots), group in groups.items():
        name = f"{place_name(dataset, dataset)} ({sweep})"
        lines.setdefault(name, {})[shots] = [value(one) for one in group]
    data = [
        series(
            name,
            sorted(by_shots),
            [statistics.fmean(by_shots[n]) for n in sorted(by_shots)],
            look(place),
            "lines+markers",
            error_y=bars_above([summary(by_shots[n]).deviation for n in sorted(by_shots)]),
        )
        for place, (name, by_shots) in enumerate(lines.items())
    ]
    return data, {"xaxis": shots_axis(shots for _, _, shots in groups), "yaxis": axis(unit)}


# --- masks ---------------------------------------------------------------------------------------

_Masks = Mapping[str, Tensor]


def dropped_iou(first: _Masks, second: _Masks) -> float | None:
    """Intersection over union of the weights that two sets of masks drop, over all tensors.

    None if neither drops any weight, or if they mask different weights. Kept sets always overlap
    almost completely, so figure 7 of the paper must be about the dropped ones.
    """
    if {n: m.shape for n, m in first.items()} != {n: m.shape for n, m in second.items()}:
        return None
    both = sum(int((~first[n] & ~second[n]).sum()) for n in first)
    either = sum(int((~first[n] | ~second[n]).sum()) for n in first)
    return both / either if either else None


def layer_sparsity(masks: _Masks) -> dict[str, float]:
    """Return the share of 0 bits per tensor."""
    return {name: 1 - mask.float().mean().item() for name, mask in masks.items()}


def mask_section(sources: Sequence[Source]) -> Section | None:
    """Build the figures of budget, layers and overlap; None without masks."""
    every = [learned for source in sources for learned in winners(source)]
    found = [(learned, masks) for learned in every if (masks := learned.masks())]
    figures = [figure for source in sources for figure in _budget(source)]
    tables = []
    if found:
        sparsity = [{n: 100 * v for n, v in layer_sparsity(m).items()} for _, m in found]
        changes = [learned.score_change() for learned, _ in found]
        for name, title, unit, values in (
            *[("mask-layers", "Sparsity of each masked tensor", "sparsity (% of bits)", sparsity)],
            (
                *("mask-changes", "Change of the scores of each masked tensor"),
                *("mean |score - initial value| (score units)", changes),
            ),
        ):
            if any(values):
                figures.append(_by_tensor(name, title, unit, [one for one, _ in found], values))
    if len(found) > 1:
        tables.append(_overlap_table(found))
        if len(found) <= _MOST_NAMES:
            figures.append(_overlap_figure(found))
    if not figures:
        return None
    notes = (
        "Sparsity is the share of dropped weights among the masked weights (unmasked weights of "
        "the tower do not count). Overlap is the intersection over union of the dropped sets; the "
        "kept sets always overlap almost completely.",
    )
    return Section("masks", "Masks", notes, tuple(tables), tuple(figures))


def _budget(source: Source) -> list[Figure]:
    trials = [r for r in source.of("COMPLETE") if {BUDGET, FLIPPED} <= r.metrics.keys()]
    if not trials:
        return []
    budgets, bits = ([r.metrics[key] for r in trials] for key in (BUDGET, FLIPPED))
    values = [100 * (r.accuracy or 0.0) for r in trials]
    dots = series(
        "trials",
        budgets,
        bits,
        text=[f"trial {r.number}: {v:.2f} %" for r, v in zip(trials, values, strict=True)],
        hovertemplate="%{text}<br>budget %{x:.3g}, %{y} bits<extra></extra>",
        marker={"color": values, **COLOURED},
    )
    limit = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1}
    layout = {
        "xaxis": log_axis("flip budget (ratio)", [*budgets, 1.0]),
        "yaxis": axis("dropped (bits)", rangemode="tozero", tickformat=",d"),
        "coloraxis": {"colorbar": {"title": {"text": "validation (%)", "side": "right"}}},
        "shapes": [limit | {"line": {"color": ORANGE, "dash": "dash", "width": 1}}],
    }
    caption = (
        "The flip budget is the largest change of a score that the scheduled learning rates allow, "
        "divided by its distance to the threshold. Left of the dashed line, a constant gradient "
        "flips no bit. Numbers of bits are means over the trial's data sets, shots and draws."
    )
    name, title = f"flip-budget-{source.name}", f"Flip budget and dropped bits: {source.name}"
    return [Figure(name, title, caption, [dots], layout)]


def _by_tensor(
    name: str,
    title: str,
    unit: str,
    found: Sequence[Learned],
    values: Sequence[Mapping[str, float]],
) -> Figure:
    """Draw one row per tensor, with one mark per data set and number of shots.

    A mark is the mean over draws; `values` holds a value per tensor for each entry of `found`.
    """
    names = list(dict.fromkeys(name for own in values for name in own))
    lines: dict[str, dict[str, list[float]]] = {}
    for learned, own in zip(found, values, strict=True):
        for tensor, value in own.items():
            lines.setdefault(learned.series, {}).setdefault(tensor, []).append(value)
    data = [
        series(title, map(statistics.fmean, rows.values()), map(names.index, rows), look(place))
        for place, (title, rows) in enumerate(lines.items())
    ]
    ticks = {"tickvals": [*range(len(names))], "ticktext": names, "autorange": "reversed"}
    across = axis(unit, rangemode="tozero")
    layout = {"height": 150 + 20 * len(names), "xaxis": across, "yaxis": ticks}
    caption = "The winner's masks, with the input side on top. Means over the draws."
    return Figure(name, title, caption, data, layout, wide=560)


_Found = Sequence[tuple[Learned, _Masks]]


def _overlap_figure(found: _Found) -> Figure:
    labels = [
        f"{place_name(one.episode.dataset, one.episode.dataset)} "
        f"{one.episode.shots}-{one.episode.seed} ({one.sweep})"
        for one, _ in found
    ]
    overlaps = [[dropped_iou(a, b) for _, b in found] for _, a in found]
    data, layout = heatmap(overlaps, (labels, labels), ("", ""), 1, "%{z:.2f}")
    layout["coloraxis"]["colorbar"] = {"title": {"text": "IoU (ratio)", "side": "right"}}
    caption = (
        "Rows and columns: data set, shots-seed (sweep). An empty cell: no dropped or no common "
        "weights."
    )
    return Figure("mask-overlap", "Overlap of dropped sets", caption, [data], layout)


def _overlap_table(found: _Found) -> Table:
    """Build the table of mean overlaps: pairs that differ only in the draw, and in the data set."""
    seeds: list[float] = []
    sets: list[float] = []
    for (one, a), (other, b) in combinations(found, 2):
        first, second, value = one.episode, other.episode, dropped_iou(a, b)
        if value is None or first.shots != second.shots:
            continue
        if first.dataset != second.dataset:
            sets.append(value)
        elif one.sweep == other.sweep and first.seed != second.seed:
            seeds.append(value)
    rows = tuple(
        (name, str(len(values)), f"{statistics.fmean(values):.3f}" if values else "-")
        for name, values in (("two draws of a data set", seeds), ("two data sets", sets))
    )
    headings = ("pairs of", "pairs", "mean IoU")
    return Table("mask-overlap", "Overlap of the dropped sets (IoU, a ratio)", headings, rows)
