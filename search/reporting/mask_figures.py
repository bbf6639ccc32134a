"""Binary masks: flip budget, sparsity per layer, and overlap (figures 5 to 7 of R-AMT)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from search.reporting.artifacts import Learned, winners
from search.reporting.evaluated import place_name
from search.reporting.figures import ORANGE, SEQUENCE, Figure, draw, logarithmic, look, plain
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table

BUDGET, FLIPPED, SPARSITY = "flip/budget", "mask/flipped", "mask/sparsity"
"""Metrics of trials whose method trains masks."""
_MOST_NAMES = 12  # rows of the overlap figure; more cannot be labelled legibly


def dropped_iou(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float | None:
    """Intersection over union of the weights that two sets of masks drop, over all tensors.

    None if neither drops any weight, or if they mask different weights. Kept sets always overlap
    almost completely, so figure 7 of the paper must be about the dropped ones.
    """
    if {n: m.shape for n, m in first.items()} != {n: m.shape for n, m in second.items()}:
        return None
    both = sum(int((~first[n] & ~second[n]).sum()) for n in first)
    either = sum(int((~first[n] | ~second[n]).sum()) for n in first)
    return both / either if either else None


def layer_sparsity(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of 0 bits per tensor."""
    return {name: 1 - mask.float().mean().item() for name, mask in masks.items()}


def mask_section(sources: Sequence[Source]) -> Section | None:
    """Build the figures of budget, layers and overlap; None without masks."""
    found = [
        (source.name, learned, masks)
        for source in sources
        for learned in winners(source)
        if (masks := learned.masks())
    ]
    figures = [_budget(source) for source in sources if _budgeted(source)]
    tables = []
    if found:
        figures.append(_layers(found))
        if (changed := _changes(found)) is not None:
            figures.append(changed)
        labels, overlaps = _overlaps(found)
        if len(labels) > 1:
            tables.append(_overlap_table(found))
            if 1 < len(labels) <= _MOST_NAMES:
                figures.append(_overlap_figure(labels, overlaps))
    if not figures:
        return None
    notes = (
        "Sparsity is the share of dropped weights among the masked weights (unmasked weights of "
        "the tower do not count). Overlap is the intersection over union of the dropped sets; the "
        "kept sets always overlap almost completely.",
    )
    return Section("masks", "Masks", notes, tuple(tables), tuple(figures))


def _budgeted(source: Source) -> bool:
    return any({BUDGET, FLIPPED} <= set(r.metrics) for r in source.of("COMPLETE"))


def _budget(source: Source) -> Figure:
    def paint(axes: Axes) -> None:
        trials = [r for r in source.of("COMPLETE") if {BUDGET, FLIPPED} <= set(r.metrics)]
        dots = axes.scatter(
            [r.metrics[BUDGET] for r in trials],
            [r.metrics[FLIPPED] for r in trials],
            c=[100 * (r.accuracy or 0.0) for r in trials],
            cmap=SEQUENCE,
            s=24,
            linewidths=0,
        )
        axes.axvline(1, color=ORANGE, linestyle="--", linewidth=1)
        logarithmic(axes, "x")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 3 * max(r.metrics[FLIPPED] for r in trials) + 1)
        axes.set(xlabel="flip budget (ratio)", ylabel="dropped (bits)")
        axes.figure.colorbar(dots, ax=axes).set_label("validation accuracy (%)")

    caption = (
        "The flip budget is the largest change of a score that the scheduled learning rates allow, "
        "divided by its distance to the threshold. Left of the dashed line, a constant gradient "
        "flips no bit. Numbers of bits are means over the trial's data sets, shots and draws."
    )
    name = f"flip-budget-{source.name}"
    return draw(name, f"Flip budget against dropped bits: {source.name}", caption, paint)


_Found = Sequence[tuple[str, Learned, dict[str, Tensor]]]


def _layers(found: _Found) -> Figure:
    shares = [{n: 100 * v for n, v in layer_sparsity(masks).items()} for _, _, masks in found]
    return _by_tensor(
        "mask-layers",
        "Sparsity of each masked tensor",
        "sparsity (% of the tensor's bits)",
        found,
        shares,
    )


def _changes(found: _Found) -> Figure | None:
    changes = [learned.score_change() for _, learned, _ in found]
    known = [(one, change) for one, change in zip(found, changes, strict=True) if change]
    if not known:
        return None
    return _by_tensor(
        "mask-changes",
        "Change of the scores of each masked tensor",
        "mean |score - initial value| (score units)",
        [one for one, _ in known],
        [change for _, change in known],
    )


def _by_tensor(
    name: str, title: str, unit: str, found: _Found, values: Sequence[Mapping[str, float]]
) -> Figure:
    """Draw one row per tensor, with one mark per data set and number of shots.

    A mark is the mean over draws; `values` holds a value per tensor for each entry of `found`.
    """
    names = list(dict.fromkeys(name for own in values for name in own))
    series: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for (sweep, learned, _), own in zip(found, values, strict=True):
        key = sweep, learned.episode.dataset, learned.episode.shots
        for tensor, value in own.items():
            series.setdefault(key, {}).setdefault(tensor, []).append(value)

    def paint(axes: Axes) -> None:
        for i, ((sweep, dataset, shots), rows) in enumerate(series.items()):
            colour, marker = look(i)
            own = [tensor for tensor in names if tensor in rows]
            axes.plot(
                [statistics.fmean(rows[tensor]) for tensor in own],
                [names.index(tensor) for tensor in own],
                color=colour,
                marker=marker,
                linestyle="none",
                label=plain(f"{place_name(dataset, dataset)}, {shots} shots ({sweep})"),
            )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05 * max(max(own.values()) for own in values) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set(xlabel=unit)

    caption = "The winner's masks, with the input side on top. Means over the draws."
    return draw(name, title, caption, paint, height=1.2 + 0.22 * len(names))


def _overlaps(
    found: _Found,
) -> tuple[list[str], list[list[float | None]]]:
    labels = [
        plain(
            f"{place_name(episode.dataset, episode.dataset)} "
            f"{episode.shots}-{episode.seed} ({sweep})"
        )
        for sweep, episode in ((sweep, learned.episode) for sweep, learned, _ in found)
    ]
    if len(labels) > _MOST_NAMES:
        return labels, []
    return labels, [[dropped_iou(a, b) for _, _, b in found] for _, _, a in found]


def _overlap_figure(labels: Sequence[str], overlaps: Sequence[Sequence[float | None]]) -> Figure:
    def paint(axes: Axes) -> None:
        values = [[float("nan") if v is None else v for v in row] for row in overlaps]
        image = axes.imshow(values, cmap=SEQUENCE, vmin=0, vmax=1)
        for i, row in enumerate(overlaps):
            for j, value in enumerate(row):
                colour = "white" if value is not None and value < 0.6 else "black"
                text = "-" if value is None else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.grid(visible=False)
        axes.figure.colorbar(image, ax=axes).set_label("intersection over union (ratio)")

    caption = (
        "Rows and columns: data set, shots-seed (sweep). A dash: no dropped or no common weights."
    )
    side = 2.6 + 0.45 * len(labels)
    return draw("mask-overlap", "Overlap of dropped sets", caption, paint, side + 1.2, side)


def _overlap_table(found: _Found) -> Table:
    """Build the table of mean overlaps: pairs that differ only in the draw, and in the data set."""
    seeds: list[float] = []
    sets: list[float] = []
    for (one, first, a), (other, second, b) in combinations(found, 2):
        value = dropped_iou(a, b)
        if value is None or first.episode.shots != second.episode.shots:
            continue
        if first.episode.dataset != second.episode.dataset:
            sets.append(value)
        elif one == other and first.episode.seed != second.episode.seed:
            seeds.append(value)
    rows = tuple(
        (name, str(len(values)), f"{statistics.fmean(values):.3f}" if values else "-")
        for name, values in (("two draws of a data set", seeds), ("two data sets", sets))
    )
    headings = ("pairs of", "pairs", "mean IoU")
    return Table("mask-overlap", "Overlap of the dropped sets (IoU, a ratio)", headings, rows)
