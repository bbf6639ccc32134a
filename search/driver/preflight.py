"""Checks before a sweep starts; all problems are reported at once."""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from search.core.config import SweepConfig, differences
from search.core.objectives import choice_problem, parse_objective
from search.core.placement import Placement, place, this_machine
from search.core.problems import UsageError
from search.core.sweep_folder import SweepFolder, SweepRecord
from search.core.task import (
    all_class_names,
    data_problems,
    task_fingerprints,
    task_notices,
    val_images,
)
from search.driver.backbone_probe import BackboneProbeProcess, Examiner, Facts
from search.ledger.study_mirror import study_storage_notice, study_storage_problems
from search.selection.selection import ENSEMBLE, ensemble_problem
from search.tracking.uri import TrackingError, check_tracking_uri, tracking_uri
from spaces.base import Space
from spaces.settings import SettingsError
from trainables.backbones.base import BackboneError
from trainables.backbones.cached import cached_backbone
from trainables.backbones.registry import BACKBONES
from trainables.core.credentials import without_password
from trainables.core.plugins import plugin_fingerprints
from trainables.core.storage import StorageError, local_folder, open_storage
from trainables.data.registry import DataSource
from trainables.methods.base import TaskFacts
from trainables.methods.registry import METHODS
from trainables.presets import task_facts

_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """A sweep that can start."""

    config: SweepConfig
    """The requested configuration, with `name` filled in."""
    setting: TaskFacts
    """The facts about the task."""
    source: DataSource
    """Opened data of the task."""
    space: Space
    """Search space for this task."""
    placement: Placement | None
    """Placement of trials; on a cluster, it is determined later."""
    fingerprints: dict[str, str]
    """Fingerprints of the backbone and the few-shot pools."""
    tracking_uri: str
    """Resolved MLflow tracking URI, or `none`."""
    id: str
    """Unique id, created with the sweep."""
    notices: tuple[str, ...] = ()
    """Notices that do not prevent the sweep from starting."""

    def record(self) -> SweepRecord:
        """The content of `sweep.json`."""
        packages = ("torch", "open_clip_torch", "ray", "optuna", "mlflow")
        return SweepRecord(
            self.id,
            self.config.public(),
            self.fingerprints,
            without_password(self.config.location),
            val_images(self.config.task, self.source),
            {package: version(package) for package in packages},
        )


def preflight(
    config: SweepConfig, meanwhile: Callable[[], object] = lambda: None, trial_write: bool = True
) -> Plan:
    """Check everything; raises `UsageError` with every problem.

    `meanwhile` is called while another process loads the backbone, unless a problem is known
    already. Without `trial_write`, nothing is written, not even to find out whether it can be.
    """
    (plan,) = preflight_each(config, [config], meanwhile, trial_write)
    return plan


def preflight_each(
    config: SweepConfig,
    parts: Sequence[SweepConfig],
    meanwhile: Callable[[], object] = lambda: None,
    trial_write: bool = True,
    problems: Sequence[str] = (),
    check_data: bool = True,
    retry_failed: bool = False,
) -> list[Plan]:
    """As `preflight`, for `config` as a whole and then for each sweep that it represents.

    `problems` are known already and reported with the others. Without `check_data`, the task is not
    what was meant, and its data is not checked. With `retry_failed`, failed trials will run again.
    """
    local = None
    problems = [*problems, *(p for part in parts for p in _choice_problems(part, retry_failed))]
    with ExitStack() as stack:
        if may_download(config.task.backbone):
            # Report other problems without waiting for a download or its retries.
            local = _check_locally(config, problems, check_data)
            stack.enter_context(offline(always=bool(local.problems)))
        examiner = stack.enter_context(BackboneProbeProcess(config.task.backbone))
        local = local or _check_locally(config, problems, check_data)
        if not local.problems:
            meanwhile()
        whole = _check(config, local, examiner, trial_write)
        plans = [
            whole if part == config else _check(part, _check_locally(part), examiner, False)
            for part in parts
        ]
    for plan in plans if trial_write else ():
        with _storage_in_words():
            open_storage(plan.config.location).probe()
    return plans


@dataclass(frozen=True)
class _Local:
    """Results of the checks that need no network."""

    problems: list[str]
    placement: Placement | None
    source: DataSource


def _check_locally(
    config: SweepConfig, known: Sequence[str] = (), check_data: bool = True
) -> _Local:
    source, placement = config.task.source(config.data), None
    problems = [*known, *config.problems()]
    if not config.address:
        placement, found = place(config, this_machine())
        problems += found
    problems += _folder_problems(config)
    problems += data_problems(config, source) if check_data else []
    return _Local(problems, placement, source)


def _check(config: SweepConfig, local: _Local, examiner: Examiner, trial_write: bool) -> Plan:
    problems, placement, source = [*local.problems], local.placement, local.source
    problems += _bucket_problems(config, trial_write) + address_problems(config)
    uri = tracking_uri(config)
    notices, found = _tracking_problems(config, uri)
    problems += found
    if config.study_storage and not (found := study_storage_problems(config.study_storage)):
        notices += filter(None, [study_storage_notice(config.study_storage)])
    problems += found if config.study_storage else []
    facts = None
    try:
        facts = examiner.facts()
    except BackboneError as error:
        if not (local.problems and _NOT_DOWNLOADED in str(error)):
            problems.append(str(error))
    if problems or facts is None:
        raise UsageError(list(dict.fromkeys(problems)))
    try:
        plan = _plan(config, source, facts, placement, uri)
    except SettingsError as error:  # what depends on the tower or the data
        raise UsageError(error.problems) from error
    problems = [f"--space {config.space}: {problem}." for problem in plan.space.first.problems()]
    if config.select == ENSEMBLE and (why := ensemble_problem(plan.space.first)):
        problems.append(f"--select {ENSEMBLE} is not possible. {why}. Use --select best.")
    if config.init_from:
        problems += config.init_from.differences(plan.fingerprints)
    if problems:
        raise UsageError(problems)
    if not plan.setting.pixels and any(
        METHODS[stage.method].input_kind == "images" for stage in plan.space.first.stages
    ):
        raise UsageError(
            [
                f"--space {config.space} trains on images, and '{config.task.datasets[0]}' holds "
                "only features. Use a space that trains on features (--space taskres), or a data "
                "set with images."
            ]
        )
    names = [
        all_class_names(config.task, source, stage.method_config.prompts)
        for stage in plan.space.first.stages
    ]
    metric = parse_objective(config.second_objective).metric if config.second_objective else ""
    if problem := examiner.check_methods(plan.space.first, names, plan.setting.images, metric):
        raise UsageError([problem])
    notices += [*facts.notices, *task_notices(config.task, source), *_toy_notices(config)]
    with _storage_in_words():
        _compare(plan, SweepFolder(open_storage(plan.config.location)))
    return replace(plan, notices=tuple(notices))


def may_download(spec: str) -> bool:
    """Whether a backbone's weights may have to be downloaded."""
    path = re.split("[:@]", spec)[-1]
    is_local = spec.startswith(("bundle:", "openai:", "local-dir:")) or path in BACKBONES
    return not is_local and not os.path.exists(os.path.expanduser(path))


@contextmanager
def offline(always: bool = False) -> Iterator[None]:
    """Let libraries use cached weights only, if the hub is unreachable or `always`.

    Without it, they retry for a minute, even for weights that are cached. Workers inherit an
    unreachable hub, but later sweeps of this process ask again.
    """
    if os.environ.pop(_OFFLINE_BY_US, ""):
        os.environ.pop(_OFFLINE, None)
    if not always and _hub_answers():
        yield
        return
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        if always and before is not None:
            os.environ[_OFFLINE] = before
        elif always:
            del os.environ[_OFFLINE]
        elif before is None:
            os.environ[_OFFLINE_BY_US] = "1"


def _hub_answers() -> bool:
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if urllib.request.getproxies():
        return True  # only the proxy can resolve the hub
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=_PROBE_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


_OFFLINE, _OFFLINE_BY_US = "HF_HUB_OFFLINE", "FEWSHOT_HUB_OFFLINE"
_NOT_DOWNLOADED = "must be downloaded once"


def _toy_notices(config: SweepConfig) -> list[str]:
    """A warning that the embedded model is not for photos, and what to use instead; or which
    cached weights are used."""
    photos = [spec for spec in config.task.datasets if not spec.startswith("digits")]
    if photos and photos[0].startswith("folder:") and config.task.backbone == cached_backbone():
        return [
            f"Backbone {config.task.backbone} is in this machine's cache, so it is the default for "
            "your own images."
        ]
    if config.task.backbone != "tiny" or not photos:
        return []
    return [
        "The default backbone 'tiny' is a toy model trained on handwritten digits: expect low "
        f"accuracy on '{photos[0]}'. For photos use a CLIP: --backbone ViT-B-32:laion2b_s34b_b79k "
        "(downloaded once, 600 MB), or without a network --backbone ARCH:FILE with a file of "
        "weights that you copied here."
    ]


def _tracking_problems(config: SweepConfig, uri: str) -> tuple[list[str], list[str]]:
    """Notices and problems of MLflow; a default database in a new folder has none."""
    folder = local_folder(config.storage) or Path.cwd()
    if uri == "none" or (not config.tracking_uri and not folder.is_dir()):
        return [], []
    try:
        notice = check_tracking_uri(uri)
    except TrackingError as error:
        return [], [str(error)]
    return [notice] if notice else [], []


def _choice_problems(config: SweepConfig, retry_failed: bool) -> list[str]:
    """Why the sweep cannot end with the trial that `--select` names."""
    if not config.select.isdecimal():
        return []
    try:
        results = SweepFolder(open_storage(config.location, _PROBE_SECONDS)).results()
    except StorageError:
        return []  # reported with the sweep's folder
    except UsageError as error:
        return [*error.problems]
    if retry_failed:
        results = {number: r for number, r in results.items() if r.state != "FAIL"}
    return [*filter(None, [choice_problem(config.select, results, config.trials)])]


def adopt(plan: Plan, sweep: SweepFolder) -> Plan:
    """The plan for the sweep in this folder, which begins with it if there is none yet. For the
    owner of the folder; raises `UsageError`, as `preflight`, and `StorageError`."""
    if not _compare(plan, sweep):
        if sweep.has_trials:  # of which task, is not known
            raise UsageError(
                [
                    f"A sweep with trials has a record, and '{sweep.files.location}' has no "
                    "sweep.json. Restore it from a copy, or start another sweep with --name."
                ]
            )
        sweep.write_record(plan.record())
        return plan
    config = plan.config.public()
    if sweep.record.config != config:  # what is not its identity may change, e.g. how many trials
        sweep.write_record(replace(sweep.record, config=config))
    return replace(plan, id=sweep.claim_id())


def _plan(
    config: SweepConfig, source: DataSource, facts: Facts, placement: Placement | None, uri: str
) -> Plan:
    facts_of_task = task_facts(config.task, source, facts.tower)
    space = config.open_space(facts_of_task)
    fingerprints = {"backbone": facts.fingerprint} | task_fingerprints(config.task, source)
    methods = {stage.method for stage in space.first.stages}
    fingerprints |= plugin_fingerprints({*config.space.split("+"), *config.task.datasets, *methods})
    named = replace(config, name=config.sweep_name)
    return Plan(named, facts_of_task, source, space, placement, fingerprints, uri, uuid.uuid4().hex)


def _folder_problems(config: SweepConfig) -> list[str]:
    """Check that the sweep's folder on this machine is writable, without writing to it."""
    folder = local_folder(config.storage)
    if folder is None:
        return []
    there = folder / config.sweep_name
    try:
        while not there.exists():
            there = there.parent
    except OSError as error:  # e.g. a name that is too long
        return [_unwritable(f"'{folder}' cannot be used ({error.strerror})")]
    if not there.is_dir():
        return [_unwritable(f"'{there}' is not a folder")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [_unwritable(f"'{there}' is not writable")]
    return []


def _bucket_problems(config: SweepConfig, trial_write: bool) -> list[str]:
    if local_folder(config.storage) is not None:
        return []
    try:
        storage = open_storage(config.storage, _PROBE_SECONDS)
        if trial_write:
            storage.probe()
        else:
            storage.folders()
    except StorageError as error:
        return [_unwritable(str(error))]
    return []


def address_problems(config: SweepConfig) -> list[str]:
    """Check that `address` is reachable; Ray itself retries for minutes before it fails."""
    host, colon, port = config.address.rpartition(":")
    if not config.address or config.address == "auto":
        return []
    try:
        if not (colon and host and port.isdecimal()):
            raise ValueError("not HOST:PORT")
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        return [
            f"--address must be HOST:PORT of a running Ray cluster, or auto, and "
            f"'{config.address}' is not ({error}). Start one (`ray up cluster.yaml`), or omit "
            "the option to use this machine."
        ]
    return []


@contextmanager
def _storage_in_words() -> Iterator[None]:
    """Raise storage errors as `UsageError`."""
    try:
        yield
    except StorageError as error:
        raise UsageError([_unwritable(str(error))]) from error


def _unwritable(why: str) -> str:
    return f"The sweep's folder must be writable, and is not: {why}. Use --storage."


def _compare(plan: Plan, sweep: SweepFolder) -> bool:
    """Whether there is a sweep already; raises `UsageError` if it has other settings, or another
    model or other data."""
    if not sweep.exists:
        sweep.check_finished()
        return False
    stored = sweep.record
    found = differences(stored.config.identity(), plan.config.public().identity())
    found = found or differences(stored.fingerprints, plan.fingerprints)
    if found:
        raise UsageError(
            [
                f"A sweep is resumed with the settings it was started with, and "
                f"'{plan.config.name}' differs. {line}. Use those settings, or start another "
                "sweep with --name."
                for line in found
            ]
        )
    return True
