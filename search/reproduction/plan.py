"""The plan of a reproduction: its backbones and trainings, the test splits that evaluate each, and
what is skipped, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from search.core.problems import UsageError
from search.core.task import all_class_names, evaluation_sets
from search.driver.backbone_probe import BackboneProbe, BackboneProbeProcess, Examiner, Facts
from search.driver.preflight import may_download, offline
from search.evaluation.workers import Candidate, SplitJob
from search.papers.cells import ZERO_SHOT, Cell, cells, row_config, sources
from search.papers.schema import Row, Table
from search.reproduction.request import Request
from spaces.registry import SpaceError
from spaces.settings import SettingsError
from trainables.backbones.base import BackboneError
from trainables.core.files import expanded
from trainables.data.base import DataError
from trainables.data.bundle import PREFIX
from trainables.data.registry import DataSource
from trainables.data.sealed import check_test_split
from trainables.fixed import training_key
from trainables.methods.registry import METHODS
from trainables.presets import task_facts
from trainables.trial import Episode, TaskSpec, TrialConfig

_OPENAI = "openai"


@dataclass(frozen=True)
class PlannedCell:
    """One training, and the reads of test splits that evaluate it."""

    cell: Cell
    """Its place in the table."""
    config: TrialConfig
    """Configuration that is trained."""
    task: TaskSpec
    """Task with its data and backbone."""
    candidate: Candidate
    """The model, for the evaluation."""
    jobs: tuple[SplitJob, ...]
    """One read per test split."""
    images: int
    """Number of training images."""

    @property
    def training(self) -> str:
        """Digest of the training; cells with equal digests share one training."""
        return self.candidate.training

    def name_of(self, job: SplitJob) -> str:
        """Return the table's name of the data set that a job reads."""
        own = job.split.target == self.candidate.episode.dataset
        return self.cell.dataset if own else job.split.target


@dataclass(frozen=True)
class ReproductionPlan:
    """The trainings of a table."""

    request: Request
    """The request."""
    table: Table
    """The table, with the available data sets and backbones."""
    cells: tuple[PlannedCell, ...]
    """Every training."""
    left_out: Mapping[str, str]
    """Reasons by name of what is skipped."""
    incomparable: Mapping[str, str]
    """Reasons why numbers cannot be compared with the paper's, by the table's backbone; empty if
    they can."""

    @property
    def trainings(self) -> dict[str, PlannedCell]:
        """Return the distinct trainings by digest; two rows of a table may share one."""
        found: dict[str, PlannedCell] = {}
        for planned in self.cells:
            found.setdefault(planned.training, planned)
        return found


def plan_reproduction(request: Request) -> ReproductionPlan:
    """Plan the trainings of a table. Raises `UsageError` if nothing can be trained."""
    table, left_out = request.table, dict[str, str]()
    specs: dict[str, str] = {name: name for name in table.backbones}
    others: dict[str, str] = {}
    if not (request.embedded or request.bundles):
        specs, others = chosen_backbones(table.backbones, request.backbones)
    left_out |= {f"backbone {name}": why for name, why in others.items()}
    found: list[PlannedCell] = []
    incomparable = {}
    for backbone, spec in specs.items():
        own = _Backbone(request, table, backbone, spec, left_out)
        found += own.cells()
        incomparable[backbone] = _incomparable(request, backbone, spec)
    if not found:
        reasons = [f"{what}: {why}" for what, why in left_out.items()]
        raise UsageError(reasons or [f"{request.name} has nothing to train."])
    there = {planned.name_of(job) for planned in found for job in planned.jobs}
    datasets = tuple(name for name in table.datasets if name in there)
    backbones = tuple(n for n in specs if any(p.cell.backbone == n for p in found))
    table = replace(table, datasets=datasets, backbones=backbones)
    return ReproductionPlan(request, table, tuple(found), left_out, incomparable)


def _incomparable(request: Request, backbone: str, spec: str) -> str:
    """Return why numbers cannot be compared with the paper's; empty if they can."""
    if request.embedded:
        return "the embedded model on handwritten digits"
    if request.bundles:
        return "features from bundles, whose weights are not verified"
    if request.draws != "coop":
        return "other draws than the published ones (see --published-draws)"
    return backbone_difference(backbone, spec)


class _Backbone:
    """The cells of one backbone. What cannot be opened is added to `left_out`."""

    def __init__(
        self, request: Request, table: Table, name: str, spec: str, left_out: dict[str, str]
    ) -> None:
        # A row without its own list has every backbone, also one that replaces the table's.
        own = (name,) if name in request.whole.backbones else ()
        rows = tuple(
            replace(row, backbones=())
            for row in table.rows
            if not (own and row.backbones and name not in row.backbones)
        )
        self._table = replace(table, backbones=(name,), rows=rows)
        self._request, self._name, self._spec, self._left_out = request, name, spec, left_out
        self._rows = {row.name: row for row in rows}

    def cells(self) -> Iterator[PlannedCell]:
        """Yield every training with this backbone."""
        if self._request.bundles:
            for dataset in sources(self._table):
                path = _bundle(self._request.bundles, self._name, dataset)
                if path is None:
                    self._left_out[dataset] = f"no bundle in '{self._request.bundles}'"
                    continue
                spec = f"{PREFIX}{path}"
                task = self._task((spec,), spec)
                yield from self._of_task({dataset: spec}, task, BackboneProbe(spec))
            return
        names = {name: name for name in self._table.datasets}
        task = self._task(self._table.datasets, self._spec)
        if self._request.embedded:  # small, and several tables in a row
            yield from self._of_task(names, task, BackboneProbe(self._spec))
            return
        if not may_download(self._spec):
            with BackboneProbeProcess(self._spec) as probe:
                yield from self._of_task(names, task, probe)
            return
        with offline(), BackboneProbeProcess(self._spec) as probe:
            yield from self._of_task(names, task, probe)

    def _task(self, datasets: tuple[str, ...], backbone: str) -> TaskSpec:
        table, request = self._table, self._request
        return TaskSpec(
            *(datasets, backbone, table.shots, table.seeds, table.protocol, request.draws),
            skip_unreadable=request.skip_unreadable,
        )

    def _of_task(
        self, names: Mapping[str, str], task: TaskSpec, probe: Examiner
    ) -> Iterator[PlannedCell]:
        """Yield the cells of data sets (the table's name -> specification)."""
        source = task.source(self._request.data)
        present = {
            name: spec for name, spec in names.items() if self._is_present(name, spec, source)
        }
        trained = [name for name in sources(self._table) if name in present]
        if not trained:
            return
        try:
            facts = probe.facts()
        except BackboneError as error:
            self._left_out[f"backbone {self._name}"] = str(error)
            return
        own = replace(task, datasets=tuple(present.values()))
        refused = self._refused(own, source, facts, probe, present[trained[0]])
        for cell in cells(replace(self._table, datasets=tuple(present))):
            if cell.row not in refused and cell.dataset in present:
                planned = self._planned(cell, present[cell.dataset], own, source, facts)
                if planned is not None:
                    yield planned

    def _is_present(self, name: str, spec: str, source: DataSource) -> bool:
        try:
            check_test_split(source.dataset(spec), self._request.skip_unreadable)
        except DataError as error:
            self._left_out[name] = str(error)
            return False
        return True

    def _refused(
        self, task: TaskSpec, source: DataSource, facts: Facts, probe: Examiner, dataset: str
    ) -> set[str]:
        """Return the rows that cannot be trained on this backbone and this kind of data."""
        refused = set()
        episode = Episode(dataset, task.shots[0], task.seeds[0], task.half)
        for row in self._rows.values():
            if not row.method:
                continue
            problem = ""
            try:
                config = self._config(row, episode, task, source, facts)
                problem = "; ".join(config.problems())
                known = task_facts(task, source, facts.tower, episode)
                if not known.pixels and any(
                    METHODS[stage.method].input_kind == "images" for stage in config.stages
                ):
                    problem = "it trains on images, and a bundle holds features"
                one = replace(task, datasets=(dataset,), protocol="few-shot")
                names = [
                    all_class_names(one, source, stage.method_config.prompts)
                    for stage in config.stages
                ]
                problem = problem or probe.check_methods(config, names, known.images)
            except (SpaceError, SettingsError, DataError) as error:
                problem = str(error)
            if problem:
                refused.add(row.name)
                self._left_out[f"row {row.name}, {self._name}"] = problem
        return refused

    def _config(
        self, row: Row, episode: Episode, task: TaskSpec, source: DataSource, facts: Facts
    ) -> TrialConfig:
        """Return the row's configuration for one training, with the paper's settings for the data
        set and the number of shots."""
        known = task_facts(task, source, facts.tower, episode)
        if self._request.bundles:  # presets know data sets by name
            known = replace(known, dataset=Path(episode.dataset).stem)
        return self._request.config(row_config(row, known))

    def _planned(
        self, cell: Cell, spec: str, task: TaskSpec, source: DataSource, facts: Facts
    ) -> PlannedCell | None:
        row = self._rows[cell.row]
        episode = Episode(spec, cell.shots, cell.seed, task.half)
        try:
            drawn = source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
            config = self._config(row, episode, task, source, facts)
            key = training_key(config, episode, source, facts.fingerprint)
        except DataError as error:
            self._left_out[f"{cell.dataset}, {cell.shots} shots"] = str(error)
            return None
        label = ZERO_SHOT if row.method == ZERO_SHOT else "paper"
        candidate = Candidate(label, episode, config.to_dict(), key)  # type: ignore[arg-type]
        jobs = tuple(
            SplitJob(split, (candidate,), 1, None)
            for split in evaluation_sets(task)
            if spec in split.sources and split.target in task.datasets
        )
        return PlannedCell(cell, config, task, candidate, jobs, len(drawn.train.labels))


def _bundle(folder: str, backbone: str, dataset: str) -> Path | None:
    """Find the bundle of a data set: `FOLDER/BACKBONE/DATASET.safetensors`, or without the
    backbone's folder."""
    root = expanded(folder)
    for path in (root / backbone / f"{dataset}.safetensors", root / f"{dataset}.safetensors"):
        if path.is_file():
            return path
    return None


def chosen_backbones(
    table: Sequence[str], given: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the specification of each backbone that is used, and the reasons why others are not.

    A given backbone replaces the table's backbone of the same architecture. If the table has none
    of the given architectures, the given backbones replace all of the table's.
    """
    if not given:
        return {name: f"{name}:{_OPENAI}" for name in table}, {}
    by_architecture = {architecture(spec): spec for spec in given}
    found = {name: by_architecture[name] for name in table if name in by_architecture}
    if not found:
        return {spec: spec for spec in given}, {}
    return found, {name: "not among --backbone" for name in table if name not in found}


def architecture(spec: str) -> str:
    """Return the architecture in a specification, as named in the papers' tables."""
    return spec.partition(":")[0].removesuffix("-quickgelu")


def backbone_difference(name: str, spec: str) -> str:
    """Return why results with the backbone `spec` cannot be compared with those of a paper with
    `name` and OpenAI's weights; empty if they can."""
    if architecture(spec) != name:
        return f"another backbone ({spec})"
    tag, _, file = spec.partition(":")[2].partition("@")
    if tag in ("", _OPENAI) and not file:
        return ""
    if not expanded(file or tag).exists():
        return f"other weights ({tag})"
    return "" if is_openai(name, file or tag) else "weights not verified"


def is_openai(name: str, file: str) -> bool:
    """Whether a local file has the digest of OpenAI's published weights."""
    from trainables.backbones.open_clip import recognise  # takes seconds to load

    return recognise(name, expanded(file)) == _OPENAI
