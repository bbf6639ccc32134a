"""The measured numbers of a table, from the stored cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from search.evaluation.statistics import harmonic
from search.evaluation.workers import SplitJob
from search.papers.cells import ZERO_SHOT
from search.papers.schema import AVERAGE, Measure, Table
from search.reporting.learned import dropped_iou
from search.reporting.measures import (
    against_zero_shot,
    artifact_measures,
    layer_measures,
    masks_of,
    transfer_difficulty,
)
from search.reproduction.plan import PlannedCell, ReproductionPlan
from search.reproduction.store import CellStore, Line

HALVES = ("base", "new")
_ARTIFACT = frozenset({"sparsity", "size", "parameters", "residual-mean", "residual-median"})
_COMPARED = frozenset({"gain", "wrong-to-right", "right-to-wrong"})
_LAYERS = frozenset({"layer-change", "layer-sparsity"})
_ANY = 0  # shots of a number that does not depend on them


@dataclass(frozen=True)
class Place:
    """Coordinates of a number in a table."""

    row: str
    """Name of the row."""
    backbone: str
    """Architecture."""
    dataset: str
    """Data set of the test images, or `average`; the group of layers for `layer-*`."""
    shots: int
    """Training images per class."""
    measure: Measure = "accuracy"
    """The measure."""
    part: str = ""
    """`base`, `new` or `harmonic` for base-to-new."""


Values = dict[Place, dict[int, float]]
"""Values by place and by seed of the draw."""


def measured(plan: ReproductionPlan, store: CellStore) -> Values:
    """Compute all numbers from the stored cells, with the averages over data sets."""
    found: Values = {}
    wanted = {*plan.table.measures}
    reference = _zero_shot(plan, store)
    for planned in plan.cells:
        cell = planned.cell
        shots = _ANY if planned.candidate.label == ZERO_SHOT else cell.shots
        at = Place(cell.row, cell.backbone, cell.dataset, shots)
        for job in planned.jobs:
            line = store.evaluated(job)
            if line is None:
                continue
            place = replace(at, dataset=planned.name_of(job))
            values = _of_line(planned, job, line, wanted, store, reference)
            for (measure, part), value in values:
                where = replace(place, measure=measure, part=part)
                found.setdefault(where, {})[cell.seed] = value
        for where, value in _of_training(planned, at, wanted, store):
            found.setdefault(where, {})[cell.seed] = value
    if "mask-iou" in wanted:
        found |= _overlaps(plan, store)
    _add_averages(plan, found)
    _add_harmonics(found)
    return found


def _zero_shot(plan: ReproductionPlan, store: CellStore) -> Mapping[tuple[str, str], SplitJob]:
    """Return the evaluation of the zero-shot model by backbone and test data set."""
    return {
        (planned.cell.backbone, planned.name_of(job)): job
        for planned in plan.cells
        if planned.candidate.label == ZERO_SHOT
        for job in planned.jobs
        if store.evaluated(job) is not None
    }


_Named = tuple[tuple[Measure, str], float]


def _of_line(
    planned: PlannedCell,
    job: SplitJob,
    line: Line,
    wanted: set[Measure],
    store: CellStore,
    reference: Mapping[tuple[str, str], SplitJob],
) -> Iterator[_Named]:
    """Yield the numbers that follow from the predictions of a test split."""
    for part in line.parts:
        name = part.part if part.part in HALVES else ""
        yield ("accuracy", name), 100 * part.right / part.images
    if "test-speed" in wanted and line.seconds:
        yield ("test-speed", ""), sum(part.images for part in line.parts) / line.seconds
    other = reference.get((planned.cell.backbone, planned.name_of(job)))
    if other is None or not wanted & {*_COMPARED, "transfer-difficulty"}:
        return
    for table, base in zip(store.predictions(job), store.predictions(other), strict=True):
        before = base.answers[0].prediction
        right = base.accuracy(base.answers[0])
        if (difficulty := transfer_difficulty(len(base.classes), right)) is not None:
            yield ("transfer-difficulty", ""), difficulty
        if planned.candidate.label != ZERO_SHOT:
            compared = against_zero_shot(table.truth, before, table.answers[0].prediction)
            for measure, value in compared.items():
                yield (measure, ""), value


def _of_training(
    planned: PlannedCell, at: Place, wanted: set[Measure], store: CellStore
) -> Iterator[tuple[Place, float]]:
    """Yield the numbers that follow from the training and its artifact."""
    facts = store.facts(planned.training) if wanted & {"train-minutes", "train-speed"} else None
    if facts is not None and facts.epochs:
        yield replace(at, measure="train-minutes"), facts.seconds / 60
        seen = facts.epochs * planned.images
        yield replace(at, measure="train-speed"), seen / max(facts.seconds, 1e-9)
    if not wanted & {*_ARTIFACT, *_LAYERS} or planned.candidate.label == ZERO_SHOT:
        return
    artifact = store.artifact(planned.training)
    if artifact is None:
        return
    for measure, value in artifact_measures(*artifact).items():
        yield replace(at, measure=measure), value
    if wanted & _LAYERS:
        for group, values in layer_measures(*artifact).items():
            for measure, value in values.items():
                # By data set, because averages are over data sets and draws.
                yield replace(at, dataset=f"{group}/{at.dataset}", measure=measure), value


def _overlaps(plan: ReproductionPlan, store: CellStore) -> Values:
    """Compute overlaps of dropped weights, between draws of one data set (stored under its name)
    and of two data sets (under `FIRST and SECOND`); each pair of draws counts once."""
    pairs: dict[Place, list[float]] = {}
    groups: dict[tuple[str, str, int], list[PlannedCell]] = {}
    for planned in plan.cells:
        cell = planned.cell
        groups.setdefault((cell.row, cell.backbone, cell.shots), []).append(planned)
    for (row, backbone, shots), group in groups.items():
        masks = {}
        for planned in group:
            artifact = store.artifact(planned.training)
            if artifact is not None and (own := masks_of(*artifact)):
                masks[planned.training] = planned.cell.dataset, own
        for (one, a), (other, b) in combinations(masks.values(), 2):
            value = dropped_iou(a, b)
            if value is not None:
                name = one if one == other else f"{one} and {other}"
                pairs.setdefault(Place(row, backbone, name, shots, "mask-iou"), []).append(value)
    return {place: dict(enumerate(values)) for place, values in pairs.items()}


def averaged(table: Table) -> tuple[str, ...]:
    """Return the data sets that a table averages over; empty if it has no averages."""
    names = table.datasets[1:] if table.average == "targets" else table.datasets
    return names if table.average != "none" and len(names) > 1 else ()


def _add_averages(plan: ReproductionPlan, found: Values) -> None:
    """Add averages over data sets, draw by draw, for rows that have all of them."""
    table = plan.table
    names = averaged(table)
    if {*table.measures} & _LAYERS:
        _add_layers(found)
        return
    if not names:
        return
    for place in [p for p in found if p.dataset == names[0]]:
        columns = [found.get(replace(place, dataset=name), {}) for name in names]
        seeds = set(columns[0]).intersection(*columns[1:])
        means = {seed: statistics.fmean(c[seed] for c in columns) for seed in sorted(seeds)}
        if means and all(set(column) == seeds for column in columns):
            found[replace(place, dataset=AVERAGE)] = means


def _add_layers(found: Values) -> None:
    """Replace the numbers of layers by their means over data sets, draw by draw."""
    groups: dict[Place, dict[int, list[float]]] = {}
    for place in [p for p in found if p.measure in _LAYERS]:
        group = replace(place, dataset=place.dataset.partition("/")[0])
        for seed, value in found.pop(place).items():
            groups.setdefault(group, {}).setdefault(seed, []).append(value)
    for group, values in groups.items():
        found[group] = {seed: statistics.fmean(own) for seed, own in values.items()}


def _add_harmonics(found: Values) -> None:
    """Add harmonic means of base and new accuracies, draw by draw. That of the average is the
    harmonic mean of the two averages."""
    for place in [p for p in found if p.part == "base" and p.measure == "accuracy"]:
        base, new = found[place], found.get(replace(place, part="new"), {})
        seeds = [seed for seed in base if seed in new]
        if seeds:
            values = {seed: harmonic(base[seed], new[seed]) for seed in seeds}
            found[replace(place, part="harmonic")] = values


def at(values: Values, place: Place) -> dict[int, float]:
    """Return the values of a place; those of the zero-shot model are the same for all shots."""
    return values.get(place) or values.get(replace(place, shots=_ANY), {})
