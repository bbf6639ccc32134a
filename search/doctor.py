"""`python -m search.doctor`: checks everything that a sweep needs, with remedies."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table
from rich.text import Text

from search.core.environment import quiet_environment

quiet_environment()  # Ray reads its settings when it is imported

from search.core.config import SweepConfig  # noqa: E402
from search.core.dataset_problems import is_bundle  # noqa: E402
from search.core.problems import UsageError  # noqa: E402
from search.core.task_options import absolute_dataset  # noqa: E402
from search.driver.backbone_probe import BackboneProbeProcess  # noqa: E402
from search.driver.preflight import address_problems  # noqa: E402
from search.terminal.class_counts import folder_table  # noqa: E402
from search.terminal.console import open_console  # noqa: E402
from search.terminal.exit_code import exit_code  # noqa: E402
from search.terminal.option_values import names  # noqa: E402
from search.terminal.parser import Parser  # noqa: E402
from search.tracking.uri import TrackingError, check_tracking_uri, tracking_uri  # noqa: E402
from trainables.backbones.base import BackboneError  # noqa: E402
from trainables.backbones.registry import absolute_spec  # noqa: E402
from trainables.core.credentials import shown  # noqa: E402
from trainables.core.files import cache_folder, kind_of  # noqa: E402
from trainables.core.storage import StorageError, open_storage  # noqa: E402
from trainables.data.base import DataError, Dataset  # noqa: E402
from trainables.data.benchmarks.imagenet import ImageNet, ImageNetShift  # noqa: E402
from trainables.data.benchmarks.layouts import LAYOUTS  # noqa: E402
from trainables.data.lists import ListedDataset  # noqa: E402
from trainables.data.registry import open_dataset  # noqa: E402
from trainables.data.sealed import check_test_split  # noqa: E402

State = Literal["fine", "look", "wrong", "absent"]
_STYLES = {"fine": "green", "look": "yellow", "wrong": "red", "absent": "dim"}
_SAMPLE = 16  # images of a data set that are decoded
_LEAST_SPACE = 2 * 2**30  # bytes

_INTRODUCTION = """\
Check what a sweep needs: data sets, weights, tracking, cluster, GPUs, disk space.

Only published weights that --backbone names are downloaded, and nothing is changed. The exit code
is 1 if something that was asked for is wrong."""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    what: str
    """What was checked."""
    state: State
    """`fine`; `look`: usable, but not as published; `wrong`; `absent`: neither there nor needed."""
    found: str
    """What was found."""
    remedy: str = ""
    """What to do about it."""


def build_parser() -> Parser:
    """Return the parser of all options."""
    default = SweepConfig()
    parser = Parser("search.doctor", _INTRODUCTION)
    parser.add_argument(
        "--data",
        default=os.environ.get("FEWSHOT_DATA", ""),
        metavar="FOLDER",
        help="folder of the benchmark data sets (default: FEWSHOT_DATA if set)",
    )
    parser.add_argument(
        "--dataset",
        dest="datasets",
        type=names,
        default=[],
        metavar="NAME,...",
        help="check these, which must exist (default: all that --data contains)",
    )
    parser.add_argument(
        "--backbone",
        default=default.task.backbone,
        metavar="SPEC",
        help="as for search.run (default: %(default)s)",
    )
    parser.add_storage()
    parser.add_argument(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI", ""),
        metavar="URI",
        help="MLflow (default: as for search.run)",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS", ""),
        metavar="HOST:PORT",
        help="Ray cluster, or auto (default: RAY_ADDRESS if set, else this machine)",
    )
    return parser


def check_dataset(spec: str, root: str, asked: bool) -> Finding:
    """Check one data set: layout, split file and counts, and decode a sample of its images."""
    try:
        dataset = open_dataset(spec, root)
    except DataError as error:
        layout = LAYOUTS.get(spec)
        there = layout and any((Path(root) / folder).is_dir() for folder in layout.folders)
        if asked or there:
            return Finding(spec, "wrong", "", str(error))
        return Finding(spec, "absent", "no folder")
    try:
        return _look_into(spec, dataset)
    except DataError as error:
        return Finding(spec, "wrong", "", str(error))


def _look_into(spec: str, dataset: Dataset) -> Finding:
    facts, counts = f"{len(dataset.class_names)} classes", None
    if isinstance(dataset, ListedDataset | ImageNet | ImageNetShift):
        counts = dataset.counts()
        facts = str(counts)
    if isinstance(dataset, ListedDataset) and (missing := dataset.missing()):
        return Finding(
            spec,
            "wrong",
            f"{facts}; {len(missing):,} of its images are missing",
            f"The first is '{missing[0]}'. Unpack the images again.",
        )
    decoded = 0 if is_bundle(spec) else _SAMPLE
    if decoded and not isinstance(dataset, ImageNetShift):
        dataset.split("train").decode_some(decoded)
        dataset.split("val").decode_some(decoded)
    check_test_split(dataset, decoded=decoded)
    if counts and spec in LAYOUTS and (why := counts.mismatch(LAYOUTS[spec].counts)):
        return Finding(spec, "look", facts, why)
    return Finding(spec, "fine", facts, " ".join(dataset.caveats))


def check_data(root: str, asked: Sequence[str]) -> Iterator[Finding]:
    """Check what was asked for, or everything that the root contains."""
    if root and not Path(root).is_dir():
        yield Finding("data", "wrong", "", f"--data must be a folder, '{root}' is {kind_of(root)}.")
        return
    if not asked and not root:
        yield Finding(
            "data",
            "absent",
            "no --data given",
            "Give --data ROOT to check benchmark data sets.",
        )
    absent = []
    for spec in asked or (("digits", *LAYOUTS) if root else ("digits",)):
        finding = check_dataset(spec, root, bool(asked))
        if finding.state == "absent":
            absent.append(spec)
        else:
            yield finding
    if absent:
        yield Finding("others", "absent", ", ".join(absent))


def check_backbone(spec: str) -> Finding:
    """Load the weights once."""
    try:
        with BackboneProbeProcess(spec) as examiner:
            facts = examiner.facts()
    except BackboneError as error:
        return Finding("backbone", "wrong", spec, str(error))
    words = f"{spec}: {facts.tower}, {facts.fingerprint[:12]}"
    return Finding("backbone", "fine", words, " ".join(facts.notices))


def check_storage(place: str) -> Finding:
    """Check where sweeps are stored."""
    try:
        storage = open_storage(place)
        if Path(place).exists() or "://" in place:
            storage.probe()
    except StorageError as error:
        return Finding("storage", "wrong", shown(place), f"{error}. Use another --storage.")
    return Finding("storage", "fine", shown(storage.location))


def check_tracking(config: SweepConfig) -> Finding:
    """Connect to MLflow."""
    try:
        uri = tracking_uri(config)
    except UsageError as error:
        return Finding("tracking", "wrong", config.storage, error.problems[0])
    if uri == "none":
        return Finding("tracking", "absent", "none")
    if not config.tracking_uri and not Path(config.storage).exists():
        return Finding("tracking", "fine", f"{shown(uri)} (created by the first sweep)")
    try:
        notice = check_tracking_uri(uri)
    except TrackingError as error:
        return Finding("tracking", "wrong", shown(uri), str(error))
    return Finding("tracking", "look" if notice else "fine", shown(uri), notice)


def check_cluster(config: SweepConfig) -> Finding:
    """Join the Ray cluster briefly, or describe this machine."""
    if not config.address:
        cores = len(os.sched_getaffinity(0))
        return Finding("cluster", "fine", f"this machine, {cores} cores")
    if problems := address_problems(config):
        return Finding("cluster", "wrong", config.address, problems[0])
    import ray

    try:
        ray.init(config.address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        return Finding("cluster", "wrong", config.address, str(error).splitlines()[0])
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    ray.shutdown()
    cores, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    found = f"{config.address}: {len(nodes)} nodes, {cores:g} cores, {gpus:g} GPUs"
    return Finding("cluster", "fine" if cores else "look", found)


def check_gpus() -> Finding:
    """List the GPUs of this machine."""
    if not torch.cuda.is_available():
        return Finding("GPU", "absent", "none here: trials run on the CPU")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names_of_cards = ", ".join(f"{c.name} ({c.total_memory / 2**30:.0f} GiB)" for c in cards)
    return Finding("GPU", "fine", names_of_cards)


def check_cache() -> Finding:
    """Check the disk space for features and decoded images."""
    folder = cache_folder()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / 2**30:.0f} GiB free"
    if free < _LEAST_SPACE:
        return Finding("cache", "look", found, "Make room, or set XDG_CACHE_HOME to another disk.")
    return Finding("cache", "fine", found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 if nothing that was asked for is wrong, else 1, and 2 for invalid options."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    console = open_console()
    options = build_parser().parse_args(arguments)
    asked = [absolute_dataset(name) for name in options.datasets]
    config = SweepConfig(
        storage=options.storage, tracking_uri=options.tracking_uri, address=options.address
    )
    backbone = asked[0] if asked and is_bundle(asked[0]) else absolute_spec(options.backbone)
    checks: list[Callable[[], Finding]] = [
        lambda: check_backbone(backbone),
        lambda: check_storage(options.storage),
        lambda: check_tracking(config),
        lambda: check_cluster(config),
        check_gpus,
        check_cache,
    ]
    findings = [*check_data(options.data, asked), *(check() for check in checks)]
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "state", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.state]
        state = Text(finding.state, style)
        table.add_row(finding.what, state, finding.found, finding.remedy)
    console.print(table)
    for spec in asked:
        with suppress(DataError):  # it is in the table
            if classes := folder_table(spec):
                console.print(classes)
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
