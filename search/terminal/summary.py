"""The last lines a sweep prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from search.core.objectives import parse_objective
from search.driver.sweep import Outcome
from search.evaluation.record import Evaluation, Label, reads_of_test
from search.evaluation.statistics import paired, summary
from search.reporting.build import REPORT, has_report
from search.terminal.console import module_command, relative, tool
from search.terminal.progress import short
from search.tracking.uri import page_of, ui_command
from trainables.credentials import without_password
from trainables.protocols import Protocol
from trainables.storage import LocalStorage, Storage, join

_NAMES: dict[Label, str] = {
    "zero-shot": "zero-shot",
    "paper": "the paper's setting",
    "winner": "the winner",
}

_TITLES: dict[Protocol, str] = {
    "few-shot": "Test accuracy",
    "base-to-new": "Harmonic mean of base and new test accuracy",
    "domain-generalization": "Mean test accuracy on the shifts",
    "cross-dataset": "Mean test accuracy on the other data sets",
}


def print_summary(outcome: Outcome, console: Console) -> None:
    """What was found, where it is, and what to do next."""
    states = ", ".join(f"{n} {state.lower()}" for state, n in outcome.states.items() if n)
    console.print(f"Trials: {states or 'none finished'}.", highlight=False)
    if outcome.overhead is not None:
        console.print(
            f"A trial cost {outcome.overhead:.2f} s outside training (median, warm workers).",
            highlight=False,
        )
    if outcome.unfinished or outcome.interrupted:
        console.print(
            f"{outcome.unfinished} unfinished. Nothing is lost. To go on, run the same command "
            f"again, or: {_command('run', outcome, '--resume')}",
            soft_wrap=True,
        )
    if outcome.front:
        words = parse_objective(outcome.config.second_objective).words
        trials = ", ".join(map(str, outcome.front))
        console.print(
            f"Pareto front of validation accuracy and {words}: {trials}.", highlight=False
        )
    if outcome.evaluation is not None:
        _print_evaluation(outcome, console)
    if outcome.undelivered:
        console.print(
            f"{outcome.undelivered} tracking events are not delivered yet; they are kept in the "
            f"outbox. To send them: {_command('sync', outcome)}",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"Folder: {_address(outcome.sweep)}", highlight=False, soft_wrap=True)
    if has_report(outcome.sweep):
        page = _address(outcome.sweep, f"{REPORT}/report.html")
        console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    if outcome.tracking_uri != "none":
        command = ui_command(outcome.tracking_uri)
        if command.startswith("mlflow "):
            command = f"{tool('mlflow')}{command.removeprefix('mlflow')}"
        if outcome.page:
            command += page_of(outcome.tracking_uri, outcome.page)
        console.print(f"MLflow: {command}", highlight=False, soft_wrap=True)


def _address(sweep: Storage, name: str = "") -> str:
    """The address of the sweep's folder, or of a file in it, as a person can use it."""
    if isinstance(sweep, LocalStorage):
        return relative(sweep.root / name)
    location = without_password(sweep.location)
    return join(location, name) if name else location


def _print_evaluation(outcome: Outcome, console: Console) -> None:
    found = outcome.evaluation
    assert found is not None
    draws = ", ".join(map(str, found.seeds))
    table = _table(f"{_TITLES[found.protocol]}, {found.images} images, fresh draws {draws}")
    for heading in ("", "mean", "deviation", "over zero-shot", "over the paper"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, name in _NAMES.items():
        figure = summary(found.figure(label))
        table.add_row(
            name,
            f"{100 * figure.mean:.1f} %",
            "-" if figure.deviation is None else f"{100 * figure.deviation:.1f}",
            "" if label == "zero-shot" else _over(found, label, "zero-shot"),
            _over(found, label, "paper") if label == "winner" else "",
            style="bold" if label == "winner" else "",
        )
    console.print(table)
    if len(found.seeds) > 1:
        console.print("±: 95 % interval of the paired differences.", style="dim")
    if len(found.seeds) < outcome.config.eval_seeds:
        console.print("Every seed draws the same images: judged once, no interval.", style="yellow")
    if len(found.of("winner")) > 1:
        _print_parts(found, console)
    assert outcome.best is not None
    console.print(
        f"The winner is trial {found.winner}, chosen on validation data "
        f"({100 * found.validation:.1f} %): {short(outcome.best.parameters)}",
        highlight=False,
    )
    if outcome.doubt:
        console.print(outcome.doubt, style="yellow", highlight=False)
    for name, reads in reads_of_test(outcome.sweep).items():
        if reads != 1:
            console.print(f"The test split of {name} has been read {reads} times.", style="yellow")


def _print_parts(found: Evaluation, console: Console) -> None:
    """One row for everything that was judged; for base-to-new both kinds of average."""
    table = _table("Mean accuracy of each")
    for heading in ("trained on", "shots", "judged on", "images", *_NAMES):
        left = heading in ("trained on", "judged on")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    rows = zip(*(found.of(label) for label in _NAMES), strict=True)
    for scores in rows:
        first = scores[0]
        where = _place(first.target) if first.part in ("shift", "target") else ""
        part = first.part if first.part in ("base", "new") else ""
        table.add_row(
            _place(first.dataset),
            str(first.shots),
            " ".join(word for word in (where, part) if word),
            str(first.images),
            *(f"{100 * score.mean:.1f} %" for score in scores),
        )
    if found.protocol == "base-to-new":
        for name, average in (
            ("harmonic mean of the averages", found.harmonic_of_means),
            ("average of the harmonic means", found.mean_of_harmonics),
        ):
            table.add_row(name, "", "", "", *(f"{100 * average(x):.1f} %" for x in _NAMES))
    console.print(table)


def print_tasks(outcomes: Sequence[Outcome], console: Console) -> None:
    """After one sweep a task: the winners side by side."""
    table = _table("One search a task: test accuracy")
    for heading in ("task", *_NAMES.values()):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    means: dict[Label, list[float]] = {label: [] for label in _NAMES}
    for outcome in outcomes:
        if outcome.evaluation is not None:
            figures = [summary(outcome.evaluation.figure(label)).mean for label in _NAMES]
            for label, figure in zip(_NAMES, figures, strict=True):
                means[label].append(figure)
            table.add_row(outcome.config.name, *(f"{100 * figure:.1f} %" for figure in figures))
    if means["winner"]:
        averages = (100 * summary(values).mean for values in means.values())
        table.add_row("average", *(f"{average:.1f} %" for average in averages), style="bold")
        console.print(table)


def _over(found: Evaluation, label: Label, baseline: Label) -> str:
    """The mean paired difference in points, with its interval."""
    gain = paired(found.figure(label), found.figure(baseline))
    if gain.high is None:
        return f"{100 * gain.mean:+z.1f}"
    return f"{100 * gain.mean:+z.1f} ± {100 * (gain.high - gain.mean):.1f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _place(spec: str) -> str:
    """A path by its last part."""
    kind, colon, path = spec.partition(":")
    return Path(path).name if colon else kind


def _command(module: str, outcome: Outcome, *options: str) -> str:
    config = outcome.config
    return module_command(f"search.{module}", *options, config.name, storage=config.storage)
