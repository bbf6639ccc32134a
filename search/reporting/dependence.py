"""Effect of the parameters on a trial's value: importances, slices, parallel coordinates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import optuna
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator
from optuna.distributions import FloatDistribution, IntDistribution, json_to_distribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from search.core.results import Result
from search.reporting.figures import (
    BLUE,
    SEQUENCE,
    Figure,
    draw,
    finish,
    logarithmic,
    painting,
    shortened,
)
from search.reporting.section import Section
from search.reporting.source import Source

_ACCURACY = "validation accuracy (%)"
_LEAST = 4  # trials; with fewer, importances are meaningless
_MOST_TREES, _TREE_TRIALS, _SEED = 32, 8_000, 0  # fewer trees for many trials, to bound the time
_MOST_LINES = 300  # of parallel coordinates: the best trials


def dependence_section(source: Source) -> Section | None:
    """Build parallel coordinates, slices and importances; None without completed trials."""
    complete = source.of("COMPLETE")
    if not complete:
        return None
    figures, names = [], varied(complete)
    found, why = _importances(_study(complete))
    notes = [] if found else [f"Importances are not shown: {why}."]
    if found:
        figures.append(_importance_figure(found, len(complete)))
    if names:
        figures.append(_slices(complete))
    if len(names) > 1:
        figures.append(_parallel(complete))
    return Section("parameters", "The parameters", tuple(notes), figures=tuple(figures))


def varied(trials: Sequence[Result]) -> list[str]:
    """Return the names of the parameters that have more than one value among these trials."""
    seen: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.parameters.items():
            seen.setdefault(name, set()).add(repr(value))
    return sorted(name for name, values in seen.items() if len(values) > 1)


def importances(trials: Sequence[Result]) -> dict[str, float]:
    """Return the share of the value's variance that each parameter explains, largest first.

    Computed with fANOVA (Hutter et al. 2014); empty if it cannot be computed.
    """
    return _importances(_study(trials))[0]


def _study(complete: Sequence[Result]) -> optuna.Study:
    """Build an in-memory study of the completed trials, without opening the stored one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=trial.accuracy,
            params=trial.parameters,
            distributions={n: json_to_distribution(t) for n, t in trial.distributions.items()},
        )
        for trial in complete
    )
    return study


def _importances(study: optuna.Study) -> tuple[dict[str, float], str]:
    """Return importances of the parameters that all completed trials have, or why none exist."""
    trials = study.get_trials(deepcopy=False)
    if len(trials) < _LEAST:
        return {}, f"at least {_LEAST} completed trials are needed, got {len(trials)}"
    if len({trial.value for trial in trials}) == 1:
        return {}, "all completed trials have the same value"
    shared = set.intersection(*(set(trial.params) for trial in trials))
    moving = [n for n in sorted(shared) if len({repr(t.params[n]) for t in trials}) > 1]
    if not moving:
        return {}, "no parameter that all completed trials have varies"
    evaluator = FanovaImportanceEvaluator(n_trees=_trees(len(trials)), seed=_SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(study, evaluator=evaluator, params=moving), ""


def _trees(trials: int) -> int:
    return max(4, min(_MOST_TREES, _TREE_TRIALS // trials))


def _parallel(complete: Sequence[Result]) -> Figure:
    """Draw Optuna's parallel coordinates in our style."""
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    ranked = sorted(complete, key=lambda r: -(r.accuracy or 0.0))[:_MOST_LINES]
    names = varied(ranked)
    # Optuna places its axes outside the canvas, so the figure relies on the tight bounding box.
    with painting(**{"axes.grid": False, "backend": "agg"}):
        axes = plot_parallel_coordinate(
            _study(ranked),
            params=names,
            target=lambda trial: 100 * (trial.value or 0.0),
            target_name=_ACCURACY,
        )
        canvas = axes.get_figure(root=True)
        assert canvas is not None
        axes.set_title("")
        for other in canvas.axes:
            if other.get_yscale() == "log":
                logarithmic(other, "y")
            other.tick_params(axis="y", labelsize=8)
        for lines in axes.collections:
            lines.set_cmap(SEQUENCE)
            lines.set(alpha=0.7, rasterized=True)
        axes.set_xticks(
            axes.get_xticks(), [shortened(t.get_text()) for t in axes.get_xticklabels()]
        )
        axes.tick_params(axis="x", rotation=20)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        canvas.set_size_inches(max(6.4, 1.3 * len(names) + 2), 4.4)
        try:
            caption = (
                "One line per completed trial; each axis has the unit of its parameter. "
                + (f"The best {_MOST_LINES} are shown. " if len(complete) > _MOST_LINES else "")
                + "Parameters that do not vary are omitted."
            )
            return finish("parallel", "Parallel coordinates", caption, canvas)
        finally:
            pyplot.close(canvas)


def _slices(complete: Sequence[Result]) -> Figure:
    names = varied(complete)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with painting():
        canvas = Canvas(figsize=(2.6 * columns + 0.8, 2.3 * rows + 0.3), layout="constrained")
        grid = canvas.subplots(rows, columns, sharey=True, squeeze=False)
        everything = list(grid.flat)
        marks = None
        for axes, name in zip(everything, names, strict=False):
            marks = _slice(axes, name, complete)
        for axes in everything[len(names) :]:
            axes.set_visible(False)
        canvas.supylabel(_ACCURACY, fontsize=10)
        if marks is not None:
            bar = canvas.colorbar(marks, ax=everything, aspect=40)
            bar.set_label("trial (number)")
            bar.locator = MaxNLocator(integer=True)
        caption = (
            "The value of every completed trial against each parameter; later trials are lighter. "
            "Conditional parameters show only the trials that have them."
        )
        return finish("slices", "Slices", caption, canvas)


def _slice(axes: Axes, name: str, complete: Sequence[Result]) -> PathCollection:
    found = [r for r in complete if name in r.parameters]
    distribution = json_to_distribution(found[0].distributions[name])
    values, log = [r.parameters[name] for r in found], False
    if isinstance(distribution, FloatDistribution | IntDistribution):
        log = distribution.log
        places = [float(v) for v in values]
        axes.xaxis.set_major_locator(MaxNLocator(4))
    else:
        words = sorted({str(v) for v in values})
        places = [float(words.index(str(v))) for v in values]
        axes.set_xticks(range(len(words)), [shortened(w, 12) for w in words], fontsize=8)
        axes.set_xlim(-0.5, len(words) - 0.5)
        if len(words) > 3:
            axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel(name, fontsize=9)
    marks = axes.scatter(
        places,
        [100 * (r.accuracy or 0.0) for r in found],
        c=[r.number for r in found],
        cmap=SEQUENCE,
        vmin=0,
        vmax=max(r.number for r in complete),
        s=20,
        alpha=0.8,
        linewidths=0,
        rasterized=len(found) > 300,
    )
    if log:
        logarithmic(axes, "x")
    return marks


def _importance_figure(found: dict[str, float], trials: int) -> Figure:
    def paint(axes: Axes) -> None:
        names = list(found)[::-1]
        axes.barh(names, [found[name] for name in names], color=BLUE, height=0.6)
        axes.set(xlabel="share of the explained variance (fraction)", xlim=(0, 1))
        axes.grid(axis="y", visible=False)

    caption = (
        f"fANOVA with {_trees(trials)} trees over {trials} completed trials, limited to parameters "
        "that all of them have. With few trials this is only a rough estimate."
    )
    height = 1.1 + 0.32 * len(found)
    return draw("importances", "Hyper-parameter importances", caption, paint, height=height)
