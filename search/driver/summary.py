"""Summary that is printed at the end of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from search.core.objectives import parse_objective
from search.driver.sweep import Outcome
from search.evaluation.cross_validation import cross_validation
from search.evaluation.predictions import read_predictions
from search.evaluation.record import LABELS, Evaluation, Gain, reads_of_test
from search.evaluation.statistics import summary
from search.reporting.files import REPORT, has_report
from search.terminal.console import mlflow_command, module_command, relative
from search.terminal.progress import short
from search.tracking.uri import page_of
from trainables.core.credentials import without_password
from trainables.core.protocols import Protocol
from trainables.core.storage import LocalStorage, Storage, join

_TITLES: dict[Protocol, str] = {
    "few-shot": "Test accuracy",
    "base-to-new": "Harmonic mean of base and new test accuracy",
    "domain-generalization": "Mean test accuracy on the shifts",
    "cross-dataset": "Mean test accuracy on the other data sets",
}


def print_summary(outcome: Outcome, console: Console) -> None:
    """Print the results, their location and the next steps."""
    states = ", ".join(f"{n} {state.lower()}" for state, n in outcome.states.items() if n)
    console.print(f"Trials: {states or 'none finished'}.", highlight=False)
    if outcome.untrained:
        console.print(outcome.untrained, highlight=False)
    if outcome.overhead is not None:
        console.print(
            f"A trial took {outcome.overhead:.2f} s outside training (median, warm workers).",
            highlight=False,
        )
    if len(outcome.methods) > 1:
        _print_methods(outcome, console)
    if outcome.unfinished or outcome.interrupted:
        console.print(
            f"{outcome.unfinished} unfinished. Nothing is lost. To resume, run the same command "
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
            f"MLflow is not up to date: {outcome.undelivered} runs are incomplete or missing. To "
            f"send them: {_command('sync', outcome)}",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"Folder: {_address(outcome.sweep)}", highlight=False, soft_wrap=True)
    if has_report(outcome.sweep):
        page = _address(outcome.sweep, f"{REPORT}/report.html")
        console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    if outcome.tracking_uri != "none":
        command = mlflow_command(outcome.tracking_uri)
        if outcome.page:
            command += page_of(outcome.tracking_uri, outcome.page)
        console.print(f"MLflow: {command}", highlight=False, soft_wrap=True)


def _address(sweep: Storage, name: str = "") -> str:
    """Return the path or URI of the sweep's folder, or of a file in it, for display."""
    if isinstance(sweep, LocalStorage):
        return relative(sweep.root / name)
    location = without_password(sweep.location)
    return join(location, name) if name else location


def _print_methods(outcome: Outcome, console: Console) -> None:
    """Print one row per method: what its best trial reached in validation, and what it cost."""
    table = _table("Methods tried, by their best trial")
    for heading in ("method", "trials", "best trial", "validation", "training"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for tried in outcome.methods:
        best = tried.best
        table.add_row(
            tried.methods,
            str(tried.trials),
            "-" if best is None else str(best.number),
            "-" if best is None else f"{100 * (best.accuracy or 0.0):.1f} %",
            f"{tried.seconds:.0f} s",
        )
    console.print(table)


def _print_evaluation(outcome: Outcome, console: Console) -> None:
    found = outcome.evaluation
    assert found is not None
    baselines = found.labels[:-1]
    table = _table(f"{_TITLES[found.protocol]}, {found.images} images, {found.draws}")
    overs = [f"over {LABELS[label]}" for label in baselines]
    for heading in ("", "mean", "deviation", *overs):
        table.add_column(heading, justify="right" if heading else "left")
    for label in found.labels:
        mean, deviation = summary(found.figure(label)).mean, found.deviation(label)
        gains = (found.gain(label, baseline) for baseline in baselines)
        table.add_row(
            LABELS[label],
            f"{100 * mean:.1f} %",
            "-" if deviation is None else f"{100 * deviation:.1f}",
            *("" if gain is None else _over(gain) for gain in gains),
            style="bold" if label == "winner" else "",
        )
    console.print(table)
    sample = "draws" if len(found.seeds) > 1 else "test images"
    console.print(f"±: 95 % interval of the paired differences, over the {sample}.", style="dim")
    for gain in found.gains:
        console.print(gain.sentence(), highlight=False)
    if found.draws_note:
        console.print(found.draws_note, style="yellow", highlight=False)
    if len(found.of("winner")) > 1:
        _print_parts(found, console)
    assert outcome.best is not None
    chosen = found.selection
    if chosen is not None and chosen.sentence:
        console.print(chosen.sentence, highlight=False)
    what = "The winner" if chosen is None or chosen.is_single else "The best single trial"
    how = (
        "named by --select, validation"
        if chosen and chosen.rule == "chosen"
        else "chosen on validation data"
    )
    console.print(
        f"{what} is trial {found.winner}, {how} "
        f"({100 * found.validation:.1f} %): {short(outcome.best.parameters, outcome.best.config)}",
        highlight=False,
    )
    if outcome.doubt:
        console.print(outcome.doubt, style="yellow", highlight=False)
    for name, reads in reads_of_test(outcome.sweep).items():
        if reads != 1:
            console.print(
                f"{reads} evaluations have read the test split of {name}.", style="yellow"
            )


def _print_parts(found: Evaluation, console: Console) -> None:
    """Print one row per evaluated part; for base-to-new, also both kinds of average."""
    table = _table("Mean accuracy of each")
    for heading in ("trained on", "shots", "judged on", "images", *found.labels):
        left = heading in ("trained on", "judged on")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    rows = zip(*(found.of(label) for label in found.labels), strict=True)
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
            table.add_row(name, "", "", "", *(f"{100 * average(x):.1f} %" for x in found.labels))
    console.print(table)


def print_tasks(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the winners of several sweeps, one task per row."""
    evaluated = [(o, o.evaluation) for o in outcomes if o.evaluation is not None]
    if not evaluated:
        return
    labels = [x for x in LABELS if all(x in found.labels for _, found in evaluated)]
    table = _table("One search per task: test accuracy")
    for heading in ("task", *(LABELS[label] for label in labels)):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    means = [[summary(found.figure(x)).mean for x in labels] for _, found in evaluated]
    for (outcome, _), row in zip(evaluated, means, strict=True):
        table.add_row(outcome.config.name, *(f"{100 * figure:.1f} %" for figure in row))
    averages = (100 * summary(column).mean for column in zip(*means, strict=True))
    table.add_row("average", *(f"{average:.1f} %" for average in averages), style="bold")
    console.print(table)


def print_folds(outcomes: Sequence[Outcome], folds: int, console: Console) -> None:
    """Print the pooled test figures of a cross-validation, once all folds are evaluated."""
    evaluated = [(o.sweep, o.evaluation) for o in outcomes if o.evaluation is not None]
    if len(evaluated) < folds:
        console.print(
            f"{len(evaluated)} of {folds} folds are evaluated. Run the same command again to "
            "complete the cross-validation.",
            highlight=False,
        )
        return
    found = cross_validation([t for pair in evaluated for t in read_predictions(*pair)])
    table = _table(
        f"Cross-validated test accuracy: {found.images} images, each tested once, {folds} folds"
    )
    for heading in ("", "accuracy", "the winner's gain"):
        table.add_column(heading, justify="right" if heading else "left")
    gains = {gain.baseline: _over(gain) for gain in found.gains}
    for label, accuracy in found.accuracy.items():
        is_winner = label == "winner"
        name = "the winners of the folds" if is_winner else LABELS[label]
        style = "bold" if is_winner else ""
        table.add_row(name, f"{100 * accuracy:.1f} %", gains.get(label, ""), style=style)
    console.print(table)
    for gain in found.gains:
        console.print(gain.sentence(), highlight=False)
    console.print(
        "Each image was classified by models of a search that had not seen it.", highlight=False
    )


def _over(gain: Gain) -> str:
    """Format a gain in points, with its interval over draws (over test images for one draw)."""
    interval = gain.over_draws or gain.over_images
    half = (interval.high or 0.0) - interval.mean
    return f"{100 * gain.mean:+z.1f} ± {100 * half:.1f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _place(spec: str) -> str:
    """Shorten the path of a data set to its last component."""
    kind, colon, path = spec.partition(":")
    return Path(path).name if colon else kind


def _command(module: str, outcome: Outcome, *options: str) -> str:
    config = outcome.config
    return module_command(f"search.{module}", *options, config.name, storage=config.storage)
