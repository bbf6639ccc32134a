"""Effect of the parameters on a trial's value: importances, slices, parallel coordinates, and the
trade-off between accuracy and a second metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import FloatDistribution, IntDistribution, json_to_distribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from search.core.objectives import Objective, front_of, pareto_front, parse_objective
from search.core.results import Result
from search.reporting.artifacts import numbers_learned
from search.reporting.document import Figure, Section, Table, percent
from search.reporting.figures import (
    BLUE,
    COLOURED,
    GREY,
    ORANGE,
    VERMILION,
    Axis,
    axis,
    linear_ticks,
    log_axis,
    log_ticks,
    plain,
    series,
)
from search.reporting.learned import SPARSITY
from search.reporting.source import Source
from search.reporting.trials import ACCURACY, STATES, varied
from trainables.core.text import amount

MOST_ARTIFACTS = 200
"""Number of (best) trials whose artifacts are read for the trade-off."""
_LEAST = 4  # trials; with fewer, importances are meaningless
_MOST_TREES, _TREE_TRIALS, _SEED = 32, 4_000, 0  # fewer trees for many trials, to bound the time
_MOST_TRIALS = 1_000  # of which importances are computed
_QUICK = 200  # trials; the importances of more take more than a second
_SPREAD, _MARGIN = 0.2, 0.4  # of discrete values, whose distance is 1
_LAST = "Pruned trials are included with the last value that they reported."


def parameters_section(source: Source, quick: bool = False) -> Section | None:
    """Build importances, slices and parallel coordinates; None without valued trials.

    `quick` omits the importances of many trials, which take seconds.
    """
    trials = source.valued
    names = varied(trials)
    if not trials or not names:
        return None
    groups = {"completed": source.of("COMPLETE"), "all": trials}
    if len(groups["completed"]) == len(trials):  # none was pruned
        del groups["all"]
    found = {
        word: own
        for word, group in groups.items()
        if not (quick and len(trials) > _QUICK) and (own := importances(group))
    }
    figures = []
    if found:
        figures.append(_importance_figure(found, len(trials)))
        leading = [n for n in list(found.values())[-1] if not _scale(n, trials).discrete]
        if len(leading) > 1:
            figures.append(_pair(leading[0], leading[1], trials, source.objective))
    figures += [_slice(name, trials, source.objective) for name in names]
    if len(names) > 1:
        figures.append(_parallel(trials, names, source.objective))
    why = _why(trials) or "they are computed when the sweep has ended"
    notes = () if found else (f"Importances are not shown: {why}.",)
    return Section("parameters", "The parameters", notes, figures=tuple(figures))


def importances(trials: Sequence[Result]) -> dict[str, float]:
    """Return the share of the value's variance that each parameter explains, largest first.

    Computed with fANOVA (Hutter et al. 2014) over the parameters that all these trials have, on at
    most `_MOST_TRIALS` of them, evenly spaced; empty if it cannot be computed.
    """
    if _why(trials):
        return {}
    shared = _shared(trials)
    trials = _spaced(trials)
    evaluator = FanovaImportanceEvaluator(n_trees=_trees(len(trials)), seed=_SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(_study(trials), evaluator=evaluator, params=shared)


def _spaced(trials: Sequence[Result]) -> Sequence[Result]:
    return trials[:: math.ceil(len(trials) / _MOST_TRIALS)]


def _part(trials: int) -> str:
    return f", on at most {_MOST_TRIALS:,} of them" if trials > _MOST_TRIALS else ""


def _why(trials: Sequence[Result]) -> str:
    """Return why these trials have no importances; empty if they have."""
    if len(trials) < _LEAST:
        return f"at least {_LEAST} trials with a value are needed, got {len(trials)}"
    if len({trial.value for trial in trials}) == 1:
        return "all trials have the same value"
    return "" if _shared(trials) else "no parameter that all trials have varies"


def _shared(trials: Sequence[Result]) -> list[str]:
    """Return the parameters that vary and that all these trials have."""
    return [n for n in varied(trials) if all(n in trial.parameters for trial in trials)]


def _trees(trials: int) -> int:
    return max(4, min(_MOST_TREES, _TREE_TRIALS // trials))


def _study(trials: Sequence[Result]) -> optuna.Study:
    """Build an in-memory study in which every trial counts as complete, because Optuna's analyses
    ignore pruned trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    texts = {text for trial in trials for text in trial.distributions.values()}
    known = {text: json_to_distribution(text) for text in texts}
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=trial.value,
            params=trial.parameters,
            distributions={name: known[text] for name, text in trial.distributions.items()},
        )
        for trial in trials
    )
    return study


def _importance_figure(found: Mapping[str, Mapping[str, float]], trials: int) -> Figure:
    names = list(list(found.values())[-1])[::-1]
    words = {"completed": ("completed trials", BLUE), "all": ("completed and pruned", ORANGE)}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": words[key][0],
            "y": names,
            "x": [round(own[name], 4) if name in own else None for name in names],
            "marker": {"color": words[key][1]},
            "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
        }
        for key, own in found.items()
    ]
    layout = {
        "height": 150 + 34 * len(names),
        "xaxis": axis("share of the variance (fraction)", range=[0, 1]),
        "yaxis": {"type": "category", "dtick": 1},
        "barmode": "group",
    }
    caption = (
        f"fANOVA with {_trees(min(trials, _MOST_TRIALS))} trees, limited to parameters that all "
        f"{trials} trials have{_part(trials)}. {_LAST} With few trials this is only a rough "
        "estimate."
    )
    return Figure("importances", "Hyper-parameter importances", caption, data, layout)


@dataclass(frozen=True)
class _Scale:
    """The values of one parameter as positions on a linear axis."""

    places: Mapping[int, float]
    """Position by trial number, for the trials that have the parameter."""
    ticks: Sequence[float]
    """Positions of the ticks."""
    texts: Sequence[str]
    """Their labels."""
    discrete: bool = False
    """Whether points are likely to hide each other."""
    log: bool = False
    """Whether positions and ticks are logarithms to base 10."""

    def shown(self, number: int, shift: float = 0.0) -> float:
        """Return a trial's place on `axis`."""
        place = self.places[number] + shift
        return 10**place if self.log else place

    def axis(self, title: str) -> Axis:
        """Return an axis with these ticks."""
        ticks = [10**tick for tick in self.ticks] if self.log else list(self.ticks)
        kind: Axis = {"type": "log"} if self.log else {}
        if self.discrete:  # the outermost ticks are visible wherever the points are spread to
            values = self.places.values()
            kind["range"] = [min(values) - _MARGIN, max(values) + _MARGIN]
        return axis(title, tickvals=ticks, ticktext=list(map(plain, self.texts)), **kind)


def _scale(name: str, trials: Sequence[Result]) -> _Scale:
    found = {r.number: r.parameters[name] for r in trials if name in r.parameters}
    first = next(r for r in trials if name in r.parameters)
    kind = json_to_distribution(first.distributions[name])
    if not isinstance(kind, FloatDistribution | IntDistribution):
        numeric = all(isinstance(v, int | float) for v in found.values())
        words = (
            list(map(str, sorted(set(found.values()))))
            if numeric
            else sorted({str(v) for v in found.values()})
        )
        places = {number: float(words.index(str(value))) for number, value in found.items()}
        return _Scale(places, [*map(float, range(len(words)))], words, True)
    low, high = float(min(found.values())), float(max(found.values()))
    whole = isinstance(kind, IntDistribution)
    if kind.log and low > 0:
        ticks = log_ticks(low, high)
        places = {number: math.log10(value) for number, value in found.items()}
        logarithms = [math.log10(t) for t in ticks]
        return _Scale(places, logarithms, [f"{t:g}" for t in ticks], log=True)
    ticks = linear_ticks(low, high, whole)
    few = whole and high - low < 12
    return _Scale({n: float(v) for n, v in found.items()}, ticks, [f"{t:g}" for t in ticks], few)


def _slice(name: str, trials: Sequence[Result], objective: str) -> Figure:
    scale, data = _scale(name, trials), []
    for state in ("PRUNED", "COMPLETE"):
        word, colour, symbol = STATES[state]
        own = [r for r in trials if r.state == state and r.number in scale.places]
        if own:
            xs = [scale.shown(r.number, _shift(r.number) * scale.discrete) for r in own]
            ys = [100 * (r.value or 0.0) for r in own]
            data.append(series(word, xs, ys, (colour, symbol), marker={"opacity": 0.65}))
            data[-1]["customdata"] = [r.number for r in own]
            shown = "%{x:.4~g}"
            if scale.discrete:
                data[-1]["text"], shown = [plain(str(r.parameters[name])) for r in own], "%{text}"
            hover = "trial %{customdata}<br>" + shown + ": %{y:.2f} %<extra></extra>"
            data[-1]["hovertemplate"] = hover
    layout = {"height": 270, "xaxis": scale.axis(name), "yaxis": axis(objective)}
    spread = " Points are spread sideways." if scale.discrete else ""
    missing = len(trials) - len(scale.places)
    verb = "does" if missing == 1 else "do"
    omitted = f" {amount(missing, 'trial')} {verb} not have it." if missing else ""
    caption = f"One point per trial.{omitted}{spread}"
    return Figure(f"slice-{name}", name, caption, data, layout)


def _pair(name: str, other: str, trials: Sequence[Result], objective: str) -> Figure:
    """Plot two parameters against each other, coloured by the value."""
    across, up = _scale(name, trials), _scale(other, trials)
    xs, ys = ([one.shown(r.number) for r in trials] for one in (across, up))
    values = [round(100 * (r.value or 0.0), 3) for r in trials]
    data = series("trials", xs, ys, marker={"color": values, **COLOURED})
    data["customdata"] = [[r.number, value] for r, value in zip(trials, values, strict=True)]
    data["hovertemplate"] = (
        "trial %{customdata[0]}<br>%{x:.4~g}, %{y:.4~g}: %{customdata[1]:.2f} %<extra></extra>"
    )
    bar = {"title": {"text": objective, "side": "right"}}
    layout = {"xaxis": across.axis(name), "yaxis": up.axis(other), "coloraxis": {"colorbar": bar}}
    caption = f"The two most important numbers. One point per trial. {_LAST}"
    return Figure("pair", f"{name} and {other}", caption, [data], layout)


def _shift(number: int) -> float:
    """Return a position within ± `_SPREAD` that looks random and is always the same."""
    return 2 * _SPREAD * ((number * 0.618034) % 1 - 0.5)


def _parallel(trials: Sequence[Result], names: Sequence[str], objective: str) -> Figure:
    """Draw one line per trial across the state, all parameters that vary, and the value."""
    values = [round(100 * (r.value or 0.0), 4) for r in trials]
    states = [float(r.state == "COMPLETE") for r in trials]
    ends = {"tickvals": [0, 1], "ticktext": ["pruned", "completed"], "range": [-0.1, 1.1]}
    dimensions: list[Mapping[str, object]] = [{"label": "state", "values": states, **ends}]
    for name in names:
        scale = _scale(name, trials)
        low, high = min(scale.places.values()), max(scale.places.values())
        ticks, texts = [*scale.ticks], [*map(plain, scale.texts)]
        outside = low - 0.1 * (high - low or 1)
        if len(scale.places) < len(trials):
            ticks, texts = [outside, *ticks], ["none", *texts]
        places = [round(scale.places.get(r.number, outside), 5) for r in trials]
        span = [min(low, *places), max(high, *places)]
        dimensions.append(
            {"label": plain(name), "values": places, "tickvals": ticks, "ticktext": texts}
            | ({"range": span} if span[1] > span[0] else {})
        )
    ticks = linear_ticks(min(values), max(values))
    last = {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    dimensions.append({"label": objective, "values": values, **last})
    data = [{"type": "parcoords", "dimensions": dimensions, "line": {"color": values, **COLOURED}}]
    caption = (
        f"One line per trial, coloured by its value. {_LAST} Drag along an axis to select a range, "
        "drag a name to move its axis. Parameters that do not vary are omitted; 'none' marks "
        "trials without the parameter."
    )
    layout = {"height": 420, "margin": {"l": 60, "r": 60, "t": 60, "b": 30}}
    layout["coloraxis"] = {"showscale": False}
    return Figure(
        "parallel", "Parallel coordinates", caption, data, layout, wide=100 * len(dimensions)
    )


# --- accuracy and its cost -----------------------------------------------------------------------


def tradeoff_section(source: Source) -> Section | None:
    """Plot accuracy against cost, with the Pareto front.

    The cost is the second objective if the sweep has one, else the sparsity if trials have masks,
    else the number of learned numbers. None with fewer than two trials to compare.
    """
    complete = source.of("COMPLETE")
    if source.config.second_objective:
        return _second(parse_objective(source.config.second_objective), complete)
    sparse = {
        r.number: (100 * r.metrics[SPARSITY], r.accuracy) for r in complete if SPARSITY in r.metrics
    }
    if len(sparse) > 1:
        note = "The cost is the sparsity: the share of the masked weights that a trial drops."
        return _tradeoff(sparse, "sparsity (% of the masked weights dropped)", "sparsity", note)
    ranked = sorted(complete, key=lambda r: (-(r.accuracy or 0.0), r.number))[:MOST_ARTIFACTS]
    sizes = numbers_learned(source, ranked)
    counted = {r.number: (float(sizes[r.number]), r.accuracy) for r in ranked if r.number in sizes}
    if len(counted) < 2:
        return None
    left_out = (
        f" Only the best {MOST_ARTIFACTS} of {len(complete)} completed trials are shown."
        if len(complete) > MOST_ARTIFACTS
        else ""
    )
    note = (
        "The cost is the count of numbers in the artifact of the trial's first training, "
        f"including those that stay fixed.{left_out}"
    )
    return _tradeoff(counted, "numbers in the artifact (count)", "numbers", note)


def _second(also: Objective, complete: Sequence[Result]) -> Section | None:
    found = {}
    for result in complete:
        if (second := also.value(result.metrics)) is not None:
            found[result.number] = second, result.accuracy
    if not found:
        return None
    note = (
        f"The sweep optimised two objectives: validation accuracy and {also.words}. The winner is "
        "the most accurate trial."
    )
    return _tradeoff(found, also.words, also.metric, note, front_of(complete, also))


def _tradeoff(
    found: Mapping[int, tuple[float, float | None]],
    cost: str,
    short: str,
    note: str,
    front: Sequence[int] = (),
) -> Section:
    points = {n: (x, 100 * y) for n, (x, y) in found.items() if y is not None}
    front = front or pareto_front(points)
    rows = tuple((str(n), _amount(points[n][0]), percent(points[n][1] / 100)) for n in front)
    table = Table(
        "front",
        "Pareto front: no other trial is better in both",
        ("trial", cost, ACCURACY),
        rows,
        "Validation accuracy, which selected the trials, not test accuracy.",
    )
    groups = [
        ("trials", [n for n in points if n not in front and n != 0], (GREY, "circle"), "markers"),
        ("Pareto front", front, (BLUE, "circle"), "lines+markers"),
        ("the paper's setting", [0] * (0 in points), (VERMILION, "diamond"), "markers"),
    ]
    data = [
        series(
            name,
            [points[n][0] for n in numbers],
            [points[n][1] for n in numbers],
            style,
            mode,
            text=[f"trial {n}: {_amount(points[n][0])}" for n in numbers],
            hovertemplate="%{text}<br>%{y:.2f} %<extra></extra>",
        )
        for name, numbers, style, mode in groups
        if numbers
    ]
    layout = {"xaxis": log_axis(cost, [x for x, _ in points.values()]), "yaxis": axis(ACCURACY)}
    caption = "Completed trials. The front connects the trials that no other trial beats in both."
    figure = Figure("tradeoff", f"Accuracy against {short}", caption, data, layout)
    return Section("tradeoff", "Accuracy and its cost", (note,), (table,), (figure,))


def _amount(cost: float) -> str:
    """Format a cost: a count in full, another number with four digits."""
    return f"{cost:,.0f}" if cost.is_integer() else f"{cost:.4g}"
