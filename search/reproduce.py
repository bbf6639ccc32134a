"""`python -m search.reproduce`: reproduces the tables and figures of the papers."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.core.environment import quiet_environment
from search.terminal.exit_code import exit_code

quiet_environment()  # Ray reads its settings when it is imported

from rich.console import Console  # noqa: E402

from search.core.config import SweepConfig  # noqa: E402
from search.core.placement import Placement, place, this_machine  # noqa: E402
from search.core.problems import StoppedError, UsageError  # noqa: E402
from search.papers.schema import papers  # noqa: E402
from search.reproduction.request import (  # noqa: E402
    EMBEDDED,
    Request,
    find_table,
    miniature,
    narrowed,
)
from search.terminal.console import (  # noqa: E402
    end_with_the_reader,
    open_console,
    relative,
)
from search.terminal.option_values import names  # noqa: E402
from search.terminal.parser import Parser, integers, location, number, text  # noqa: E402
from trainables.backbones.registry import absolute_spec  # noqa: E402
from trainables.core.files import expanded  # noqa: E402
from trainables.core.storage import StorageError, open_storage  # noqa: E402
from trainables.trial import TaskSpec  # noqa: E402

if TYPE_CHECKING:
    from search.reproduction.layout import Reproduced
    from search.reproduction.plan import ReproductionPlan

_INTRODUCTION = """\
Reproduce tables and figures of the papers, and compare measured with published numbers.

Without a name, it lists all tables and figures. Repeat the command to resume an interrupted run.
Each training is done once, even if several tables need it."""
_EXAMPLES = """\
examples:
  python -m search.reproduce                          list tables and figures
  python -m search.reproduce rmt/table-5 --embedded   in miniature, in a minute
  python -m search.reproduce taskres --embedded       all tables of a paper
  python -m search.reproduce taskres/table-8 --data ROOT --published-draws
  python -m search.reproduce rmt/table-17 --data ROOT --only dtd --shots 1,4
  python -m search.reproduce taskres/table-8 --bundles FOLDER"""
_STORAGE = "reproductions"


def build_parser() -> Parser:
    """Build the parser of the options."""
    parser = Parser("search.reproduce", _INTRODUCTION, epilog=_EXAMPLES)
    add = parser.add_argument
    add(
        "tables",
        nargs="*",
        metavar="TABLE",
        help="a table or figure, e.g. rmt/table-4, or a paper for all of its tables",
    )
    add(
        "--data",
        default=os.environ.get("FEWSHOT_DATA", ""),
        metavar="ROOT",
        help="folder of the field's data sets (default: FEWSHOT_DATA if set); data sets that are "
        "missing are skipped, and a note lists the data sets of each average",
    )
    add(
        "--bundles",
        type=text,
        default=None,
        metavar="FOLDER",
        help="take features from FOLDER/DATASET.safetensors, or FOLDER/BACKBONE/DATASET.safetensors"
        ", instead of images; for methods that train on features",
    )
    add(
        "--backbone",
        type=names,
        default=(),
        metavar="SPEC,...",
        help="backbones in place of the table's of the same architecture, as in search.run, e.g. "
        "RN50:weights.pt (default: the table's, with OpenAI's weights)",
    )
    add("--only", type=names, default=(), metavar="NAME,...", help="these data sets only")
    add("--shots", type=integers, default=(), metavar="N,...", help="these numbers of shots only")
    add("--seeds", type=integers, default=(), metavar="N,...", help="these draws only")
    add(
        "--published-draws",
        action="store_true",
        help="draw few-shot images by the field's rule, as the papers did; published numbers are "
        "compared with measured ones only then",
    )
    add("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    add(
        "--embedded",
        action="store_true",
        help="in miniature: the embedded model, handwritten digits, two draws, two epochs",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print the number of trainings, and an estimate of time and memory",
    )
    add("--retry-failed", action="store_true", help="repeat trainings that have failed")
    add(
        "--storage",
        type=location,
        default=_STORAGE,
        metavar="PLACE",
        help="where results are stored: a folder or the URI of a bucket (default: %(default)s)",
    )
    add("--address", default="", metavar="HOST:PORT", help="Ray cluster to join, or auto")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto uses a GPU if there is one (default: %(default)s)",
    )
    add("--cpus-per-trial", type=number, default=1.0, metavar="X", help="CPU cores per training")
    add("--gpus-per-trial", type=number, default=None, metavar="X", help="GPUs per training")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 if every cell was trained, 2 for invalid input, 1 if a training failed or the
    run could not continue, and 130 if it was interrupted."""
    message = (
        "The reproduction stopped: {}. Finished trainings are kept: fix the cause and run the same "
        "command again."
    )
    return exit_code(
        lambda: _main(build_parser().parse_args(arguments), open_console()),
        "Stopped. Finished trainings are kept; run the same command again to continue.",
        {StoppedError: (1, message), StorageError: (1, message)},
    )


def _main(options: Namespace, console: Console) -> int:
    if not options.tables:
        end_with_the_reader()
        _list(console)
        return 0
    requests = read_requests(options)
    placement = _placement(options)
    if options.dry_run:
        _dry_run(requests, placement, console)
        return 0
    return _run(requests, options, placement, console)


def read_requests(options: Namespace) -> list[Request]:
    """Return the requested tables; raises `UsageError` with every mistake."""
    problems = _conflicts(options)
    found: list[Request] = []
    for name in _table_names(options.tables):
        try:
            paper, whole = find_table(name)
            table = narrowed(whole, options.only, options.shots, options.seeds)
        except UsageError as error:
            problems += error.problems
            continue
        if options.bundles and table.protocol != "few-shot":
            problems.append(
                f"--bundles requires a few-shot table, and {name} is {table.protocol}, which needs "
                "images. Use --data."
            )
        if options.embedded:
            table = miniature(table)
        draws = "coop" if options.published_draws else "seeded-capped"
        found.append(
            Request(
                *(paper, name, table, whole),
                *(_absolute(options.data), _absolute(options.bundles)),
                *(tuple(map(absolute_spec, options.backbone)), draws),
                *(options.embedded, options.skip_unreadable),
            )
        )
    if problems:
        raise UsageError(list(dict.fromkeys(problems)))
    return found


def _absolute(path: str | None) -> str:
    """Workers may have another current folder."""
    return str(expanded(path).absolute()) if path else ""


def _conflicts(options: Namespace) -> list[str]:
    found = [
        f"--{name.replace('_', '-')} cannot be used with --embedded, which has its own data and "
        "model. Omit one of them."
        for name in ("bundles", "backbone", "only", "published_draws", "skip_unreadable")
        if options.embedded and getattr(options, name)
    ]
    if options.bundles and options.backbone:
        found.append("--backbone cannot be used with --bundles, which hold features. Omit it.")
    if options.bundles and not expanded(options.bundles).is_dir():
        found.append(f"--bundles must be a folder, got '{options.bundles}'. Use another one.")
    if not (options.embedded or options.bundles or options.data):
        found.append(
            "A table needs data: add --data ROOT (or set FEWSHOT_DATA), --bundles FOLDER, or "
            "--embedded for a miniature."
        )
    return found


def _table_names(given: Sequence[str]) -> list[str]:
    """Return the names of tables; a paper's name is replaced by its tables, except those with
    nothing to train."""
    known = papers()
    found: list[str] = []
    for name in given:
        if name in known:
            tables = known[name].tables.items()
            found += [f"{name}/{key}" for key, t in tables if any(row.method for row in t.rows)]
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _list(console: Console) -> None:
    from search.reproduction.output import table_list

    for listed in table_list():
        console.print(listed)
        console.print()
    console.print(
        "Run one: python -m search.reproduce rmt/table-5 --embedded, or with --data ROOT. A "
        "training that several tables need is done once."
    )


def _carrier(options: Namespace) -> SweepConfig:
    """Return the options about machines, for placement and checks."""
    return SweepConfig(
        task=TaskSpec(("digits",), EMBEDDED, (1,), (1,)),
        address=options.address or os.environ.get("RAY_ADDRESS", ""),
        device=options.device,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
    )


def _placement(options: Namespace) -> Placement | None:
    """Return where trainings run; None on a cluster, which is not connected yet. Raises
    `UsageError`."""
    from search.driver.preflight import address_problems

    config = _carrier(options)
    if problems := address_problems(config):
        raise UsageError(problems)
    if config.address:
        return None
    placement, problems = place(config, this_machine())
    if problems:
        raise UsageError(problems)
    return placement


def _dry_run(requests: Sequence[Request], placement: Placement | None, console: Console) -> None:
    from search.reproduction.estimate import estimate, lines
    from search.reproduction.plan import plan_reproduction

    for request in requests:
        plan = plan_reproduction(request)
        console.print(f"{request.name}: {request.table.caption}.", style="bold")
        _print_left_out(plan, console)
        usual = SweepConfig(task=TaskSpec(("digits",), EMBEDDED, (1,), (1,)))
        here = placement or place(usual, this_machine())[0]
        assert here is not None, "the default placement always fits"
        with console.status("Timing some steps"):
            found = estimate(plan, here)
        for line in lines(found, here):
            console.print(line)


def _print_left_out(plan: ReproductionPlan, console: Console) -> None:
    for what, why in plan.left_out.items():
        console.print(f"Skipped: {what} ({why.rstrip('.')}).", style="yellow")


def _run(
    requests: Sequence[Request],
    options: Namespace,
    placement: Placement | None,
    console: Console,
) -> int:
    from search.core.lock import SweepLock
    from search.execution.ray_session import connected_machine, ray_session
    from search.reproduction.output import print_reproduced, write_page, write_reproduced
    from search.reproduction.plan import plan_reproduction
    from search.reproduction.store import CellStore

    config = _carrier(options)
    plans = [plan_reproduction(request) for request in requests]
    storage = open_storage(options.storage)
    storage.probe()

    def say(line: str) -> None:
        console.print(line, style="yellow")

    with SweepLock(storage, say, "use another folder with --storage") as lock:
        storage.clean_temporary_files()
        store = CellStore(storage, lock.check)
        found: list[Reproduced] = []
        warm = 2 * placement.slots if placement else 0  # some train while others classify
        with ray_session(config.address, console, warm):
            if placement is None:
                placement, problems = place(config, connected_machine(config.address))
                if placement is None:
                    raise UsageError(problems)
            for plan in plans:
                reproduced = _reproduce(plan, store, placement, options, console)
                print_reproduced(reproduced, console)
                write_reproduced(reproduced, storage)
                found.append(reproduced)
        page = write_page(found, storage)
    folder = relative(Path(options.storage)) if "://" not in options.storage else options.storage
    console.print(f"Written to {folder}: {page}, and .md, .tex and .csv of each table.")
    return 1 if any(store.failure(t) for plan in plans for t in plan.trainings) else 0


def _reproduce(
    plan: ReproductionPlan,
    store: object,
    placement: Placement,
    options: Namespace,
    console: Console,
) -> Reproduced:
    """Train and evaluate the missing cells, and lay out the table."""
    from search.reproduction.layout import lay_out
    from search.reproduction.numbers import measured
    from search.reproduction.run import run_cells
    from search.reproduction.store import CellStore
    from search.terminal.bars import Bars

    assert isinstance(store, CellStore)
    _print_left_out(plan, console)
    console.print(
        f"{plan.request.name}: {len(plan.trainings)} trainings, {placement.slots} at a time.",
        style="bold",
    )
    with Bars(console) as bars:
        shared = bool(_carrier(options).address)
        run_cells(plan, store, placement, shared, options.retry_failed, bars.tell)
    failures = [
        f"{p.cell.row}, {p.cell.dataset}, {p.cell.shots} shots, draw {p.cell.seed}: {reason}"
        for p in plan.cells
        if (reason := store.failure(p.training))
    ]
    return lay_out(plan, measured(plan, store), failures)


if __name__ == "__main__":
    sys.exit(main())
