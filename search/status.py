"""`python -m search.status`: shows the status of one sweep, and what to do next."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from search.core.problems import UsageError
from search.core.results import untrained_note
from search.core.shown import described
from search.evaluation.record import EVALUATION, Evaluation
from search.evaluation.statistics import summary
from search.list import STYLES
from search.terminal.console import (
    end_with_the_reader,
    mlflow_command,
    module_command,
    open_console,
)
from search.terminal.details import Details, load_details
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser
from search.terminal.progress import percent, short
from search.terminal.sweep_status import SweepStatus, ago, failures, read_standing
from trainables.core.credentials import shown, without_password

_INTRODUCTION = """\
Show the status of a sweep: its trials, best value, location and next steps.

Nothing is changed."""

_LINES = 12  # of a traceback (the last ones)


def build_parser() -> Parser:
    """Build the parser of the options."""
    parser = Parser("search.status", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_storage()
    parser.add_argument(
        "--errors",
        action="store_true",
        help="why trials have failed, with the last lines of their tracebacks",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document, for programs")
    return parser


def next_steps(found: SweepStatus, details: Details, storage: str) -> list[tuple[str, str]]:
    """Return the suggested commands and what they do, most useful first."""
    name = found.name

    def command(module: str, *more: str) -> str:
        return module_command(f"search.{module}", *more, storage=storage)

    steps: list[tuple[str, str]] = []
    if found.state in ("interrupted", "never begun"):
        steps.append((command("run", "--resume", name), "resume it"))
    if details.waiting and found.owner is None:
        steps.append((command("sync", name), f"send MLflow the {details.waiting} runs it lacks"))
    if found.done and not (details.has_report and found.state == "finished"):
        steps.append((command("report", name), "write its report"))
    if found.judged is not None and found.owner is None:
        steps.append((command("export", name, "--format", "artifact"), "export the winning model"))
    if found.done and details.tracking_uri != "none":
        steps.append((mlflow_command(details.tracking_uri), "browse its trials in MLflow"))
    if found.state == "finished" and found.best is not None:
        more = str(found.asked + max(1, found.asked // 2))
        steps.append((command("run", "--resume", name, "--trials", more), "add trials"))
    if found.states["FAIL"] and found.owner is None:
        retry = command("run", "--resume", name, "--retry-failed")
        steps.append((retry, "run failed trials again"))
    if found.states["FAIL"]:
        steps.append((command("status", name, "--errors"), "see why trials failed"))
    return steps


def _print(found: SweepStatus, details: Details, storage: str, console: Console) -> None:
    config, best = found.config, found.best
    assert config is not None
    console.print(f"Sweep {found.name}: {config.space} on {described(config.task)}", style="bold")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    state = found.state + (f", by {found.owner}" if found.owner else "")
    table.add_row("state", state, style=STYLES[found.state])
    ends = ", ".join(f"{n} {state.lower()}" for state, n in found.states.items() if n)
    waiting = f"; {len(details.unfinished)} unfinished" if details.unfinished else ""
    counts = f"{found.done} of {found.asked} ended{f': {ends}' if ends else ''}{waiting}"
    table.add_row("trials", counts)
    if note := untrained_note((found.results or {}).values()):
        table.add_row("", note)
    if found.since is not None:
        latest = f"a trial last ended {ago(found.latest)} ago"
        table.add_row("begun", f"{ago(found.since)} ago, {latest}")
    if best is not None:
        value = percent(best.accuracy).strip()
        table.add_row(
            "best",
            f"trial {best.number}, validation {value}: {short(best.parameters, best.config)}",
        )
    table.add_row("test", _judged(found))
    table.add_row("storage", without_password(found.sweep.location))
    if config.study_storage:
        table.add_row("study storage", shown(config.study_storage))
    table.add_row("MLflow", _delivery(details))
    report = "report/report.html in the folder" if details.has_report else "none yet"
    table.add_row("report", report)
    if details.annotations.note:
        table.add_row("note", details.annotations.note)
    if details.annotations.tags:
        table.add_row("tags", details.annotations.shown_tags)
    console.print(table)
    if details.unfinished:
        console.print(_unfinished(details, found))
    console.print("Next:", style="bold")
    for command, what in next_steps(found, details, storage):
        # One that is wider than the terminal can still be copied.
        console.print(f"  {command}", soft_wrap=True)
        console.print(f"      {what}", style="dim")


def _judged(found: SweepStatus) -> str:
    if found.damaged:
        return f"judged, but {EVALUATION} cannot be read: it is damaged, or of another version"
    if found.judged is None:
        return "not judged yet"
    judged = found.judged
    means = ", ".join(
        f"{label} {100 * summary(judged.figure(label)).mean:.1f} %"
        for label in reversed(judged.labels)
    )
    return f"{means} ({judged.images} images, {_draws(judged)})"


def _delivery(details: Details) -> str:
    if details.tracking_uri == "none":
        return "none"
    where = shown(details.tracking_uri)
    if details.waiting is None:
        return f"{where}; whether it is up to date is known on the driver's machine"
    refused = f", {details.refused} refused" if details.refused else ""
    return f"{where}; {details.waiting or 'no'} runs to be sent{refused}"


def _unfinished(details: Details, found: SweepStatus) -> Table:
    table = Table(box=None, pad_edge=False)
    heading = "running" if found.owner else "unfinished"
    for text in (heading, "part", "last value", "for", "deaths"):
        table.add_column(text, justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for trial in details.unfinished:
        table.add_row(
            str(trial.number),
            str(trial.parts),
            percent(trial.value).strip(),
            ago(trial.begun),
            str(trial.deaths or ""),
            short(trial.parameters),
        )
    return table


def _draws(found: Evaluation) -> str:
    if len(found.seeds) == 1:
        return "1 draw"
    return f"{len(found.seeds)} {'' if found.seen else 'fresh '}draws"


def _print_errors(found: SweepStatus, console: Console) -> None:
    failed = failures(found.results or {})
    if not failed:
        console.print(f"No trial of {found.name} has failed.")
    for failure in failed:
        where = f" on {failure['host']}" if failure["host"] else ""
        deaths = f", its worker died {failure['failures']} times" if failure["failures"] else ""
        console.print(f"Trial {failure['number']}{where}{deaths}: {failure['reason']}", style="red")
        console.print(f"  {short(failure['parameters'])}", style="dim")
        for line in failure["details"].rstrip().splitlines()[-_LINES:]:
            console.print(f"    {line}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the sweep could be read, 2 for a mistake or a sweep that is damaged."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    console = open_console()
    options = build_parser().parse_args(arguments)
    found = read_standing(options.name, options.storage)
    if found.trouble:
        raise UsageError([found.trouble])
    if options.errors and not options.json:
        _print_errors(found, console)
        return 0
    details = load_details(found)
    if not options.json:
        _print(found, details, options.storage, console)
        return 0
    steps = [command for command, _ in next_steps(found, details, options.storage)]
    document = found.to_dict() | details.to_dict() | {"next": steps}
    if options.errors:
        document["errors"] = failures(found.results or {})
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
