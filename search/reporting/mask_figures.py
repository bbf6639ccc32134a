"""Binary masks: how many bits could flip and did, where, and which (R-AMT's figures 5 to 7)."""

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
"""Metrics of a trial whose method trains masks."""
_MOST_NAMES = 12  # rows of the overlap that still can be labelled


def dropped_iou(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float | None:
    """Intersection over union of what two sets of masks drop, over all their tensors; None where
    neither drops anything, or where they mask other weights. Kept sets always overlap, so the
    paper's figure 7 can only mean the dropped ones."""
    if {n: m.shape for n, m in first.items()} != {n: m.shape for n, m in second.items()}:
        return None
    both = sum(int((~first[n] & ~second[n]).sum()) for n in first)
    either = sum(int((~first[n] | ~second[n]).sum()) for n in first)
    return both / either if either else None


def layer_sparsity(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of each tensor's bits that are 0."""
    return {name: 1 - mask.float().mean().item() for name, mask in masks.items()}


def mask_section(sources: Sequence[Source]) -> Section | None:
    """Budget, layers and overlap; None where nothing was masked."""
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
        "Sparsity is the share of masked weights that are dropped, not of all weights of the "
        "tower. Overlap is the intersection over union of the dropped sets: the kept ones overlap "
        "almost wholly whatever was learned.",
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
            c=[100 * (r.value or 0.0) for r in trials],
            cmap=SEQUENCE,
            s=24,
            linewidths=0,
        )
        axes.axvline(1, color=ORANGE, linestyle="--", linewidth=1)
        logarithmic(axes, "x")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 3 * max(r.metrics[FLIPPED] for r in trials) + 1)
        axes.set(xlabel="flip budget (way to the threshold, ratio)", ylabel="dropped (bits)")
        axes.figure.colorbar(dots, ax=axes).set_label("validation accuracy (%)")

    caption = (
        "The flip budget is how far the scheduled learning rates can carry a score, as a share of "
        "its way to the threshold; left of the dashed line a constant gradient flips no bit. Bits "
        "are means over the trial's data sets, shots and draws."
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
        "mean |score - first value| (score units)",
        [one for one, _ in known],
        [change for _, change in known],
    )


def _by_tensor(
    name: str, title: str, unit: str, found: _Found, values: Sequence[Mapping[str, float]]
) -> Figure:
    """A row a tensor, a mark a data set and number of shots: the mean over draws of what `values`
    gives for each of `found`."""
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

    caption = "The winner's masks, from the image side down; the mean over draws."
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
        "Rows and columns: data set, shots-seed (sweep). A dash: nothing dropped, or other weights."
    )
    side = 2.6 + 0.45 * len(labels)
    return draw("mask-overlap", "Overlap of dropped sets", caption, paint, side + 1.2, side)


def _overlap_table(found: _Found) -> Table:
    """Means over the pairs that differ in the draw alone, and over those of two data sets."""
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
