"""Estimates time and memory of a reproduction from timed steps of each method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search.core.placement import Placement
from search.driver.cost_estimate import Cost, RehearsalError, Size, rehearse
from search.papers.cells import ZERO_SHOT
from search.reproduction.plan import PlannedCell, ReproductionPlan
from search.terminal.sweep_status import duration
from trainables.data.benchmarks.layouts import LAYOUTS
from trainables.data.registry import DataSource
from trainables.trial import TaskSpec


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a table's cells."""

    trainings: int
    """Number of trainings."""
    images: int
    """Training images, counted once per epoch."""
    test_images: int
    """Test images to classify."""
    seconds: float
    """Total time of all workers."""
    memory: int
    """Memory of a worker, in bytes."""
    gpu_memory: int
    """GPU memory of a worker, in bytes; 0 on the CPU."""
    untimed: tuple[str, ...]
    """Methods that could not be timed, with the reason."""


def estimate(plan: ReproductionPlan, placement: Placement) -> Estimate:
    """Time a few steps of every method and backbone, and multiply by the number of cells.

    The steps are those of the cell with the most training images, so the estimate is an
    upper bound: steps with fewer classes cost less. Test images cost as much as validation images.
    """
    costs, untimed = _costs(plan, placement)
    seconds, memory, gpu_memory, images, test_images = 0.0, 0, 0, 0, 0
    sizes = _TestSizes(plan)
    encoded: set[tuple[str, str]] = set()
    for planned in plan.trainings.values():
        own = planned.images * sum(stage.epochs for stage in planned.config.stages)
        tested = sum(sizes.of(planned, job.split.target) for job in planned.jobs)
        images, test_images = images + own, test_images + tested
        cost = costs.get(_kind(planned))
        if cost is None:
            continue
        val = cost.val_images
        seconds += cost.seconds(planned.config, [Size(planned.images, 0)], 0)
        seconds += tested * cost.stages[-1].validate / max(1, val)
        for job in planned.jobs:  # features of a test split are computed once
            key = (planned.cell.backbone, job.split.target)
            if key not in encoded:
                encoded.add(key)
                seconds += cost.encode * sizes.of(planned, job.split.target)
        if planned.candidate.label != ZERO_SHOT:
            seconds += cost.encode * planned.images
        own_memory, own_gpu = cost.trial_memory([Size(planned.images, val)])
        memory, gpu_memory = max(memory, own_memory), max(gpu_memory, own_gpu)
    count = len(plan.trainings)
    return Estimate(count, images, test_images, seconds, memory, gpu_memory, tuple(untimed))


def _kind(planned: PlannedCell) -> tuple[str, str]:
    """Return methods and backbone, which determine the cost per image."""
    return planned.config.methods, planned.cell.backbone


def _costs(
    plan: ReproductionPlan, placement: Placement
) -> tuple[dict[tuple[str, str], Cost], list[str]]:
    largest: dict[tuple[str, str], PlannedCell] = {}
    for planned in plan.trainings.values():
        other = largest.setdefault(_kind(planned), planned)
        if planned.images > other.images:
            largest[_kind(planned)] = planned
    costs, untimed = {}, []
    for kind, planned in largest.items():
        episode, task = planned.candidate.episode, planned.task
        one = TaskSpec(
            *((episode.dataset,), task.backbone, (episode.shots,), (episode.seed,)),
            protocol="base-to-new" if task.half == "base" else "few-shot",
            draws=task.draws,
        )
        data, threads = plan.request.data, max(1, int(placement.cpus))
        try:
            costs[kind] = rehearse(planned.config, one, data, placement.device, threads)
        except RehearsalError as error:
            untimed.append(f"{kind[0]} on {kind[1]}: {error}")
    return costs, untimed


class _TestSizes:
    """Numbers of test images, from public counts, without reading test data."""

    def __init__(self, plan: ReproductionPlan) -> None:
        self._data = plan.request.data
        self._sources: dict[str, DataSource] = {}
        self._known: dict[tuple[str, str], int] = {}

    def of(self, planned: PlannedCell, target: str) -> int:
        """Return the published number of test images; if there is none, the number of validation
        images."""
        if target in LAYOUTS:
            return LAYOUTS[target].counts.test
        backbone = planned.task.backbone
        source = self._sources.setdefault(backbone, planned.task.source(self._data))
        key = (backbone, target)
        if key not in self._known:
            self._known[key] = len(source.dataset(target).split("val").labels)
        return self._known[key]


def lines(found: Estimate, placement: Placement) -> Iterator[str]:
    """Yield the estimate as sentences."""
    yield (
        f"{found.trainings} trainings on {found.images:,} images (summed over epochs), then "
        f"tests on about {found.test_images:,} images."
    )
    shown = duration(found.seconds / placement.slots)
    where = "GPU" if placement.device == "cuda" else "CPU"
    gpu = f", and {found.gpu_memory / 2**30:.1f} GiB of the GPU's" if found.gpu_memory else ""
    yield (
        f"About {shown} on the {where}, {placement.slots} at a time; a worker needs "
        f"{found.memory / 2**30:.1f} GiB of memory{gpu}."
    )
    for reason in found.untimed:
        yield f"Not timed, and not included: {reason}."
