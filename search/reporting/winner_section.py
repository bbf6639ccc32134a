"""First section of a report: the winner, its gains, and their significance."""

from __future__ import annotations

from search.evaluation.record import LABELS, Evaluation, Gain
from search.evaluation.statistics import indistinguishable, separation_note, summary
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table, percent
from trainables.core.protocols import Protocol
from trainables.trial import TrialConfig

_FIGURES: dict[Protocol, str] = {
    "few-shot": "test accuracy",
    "base-to-new": "harmonic mean of base and new test accuracy",
    "domain-generalization": "mean test accuracy on the shifts",
    "cross-dataset": "mean test accuracy on the other data sets",
}


def winner_section(source: Source) -> Section:
    """Build the section: configuration, validation and test results, and tied trials."""
    best = source.best
    if best is None:
        return Section("winner", "The winner", ("There is no winner: no trial has completed yet.",))
    assert best.accuracy is not None
    notes = [
        f"Trial {best.number} is the winner of {len(source.of('COMPLETE'))} completed trials, with "
        f"a validation accuracy of {percent(best.accuracy)} %. This number is optimistically "
        "biased, because it selected the winner; the test results are not.",
        tie_note(source),
    ]
    tables = []
    if source.judged is not None:
        tables.append(test_table(source.judged))
        notes += [gain.sentence() for gain in source.judged.gains]
        notes += [source.judged.draws_note] * bool(source.judged.draws_note)
    else:
        notes.append(source.unjudged)
    return Section("winner", "The winner", tuple(notes), (*tables, _configuration(source)))


def tied(source: Source) -> tuple[int, ...] | None:
    """Return the trials that validation cannot separate from the winner; None if the number of
    validation images is unknown."""
    values, images = _values(source), source.record.val_images
    return indistinguishable(values, int(images)) if values and images else None


def tie_note(source: Source) -> str:
    """Return one sentence on how many trials are tied with the winner."""
    images = source.record.val_images
    if not images:
        return (
            "The number of trials tied with the winner is unknown: the sweep was started by a "
            "version that did not record the number of validation images."
        )
    note = separation_note(_values(source), int(images))
    return note or f"No other trial is tied with it on {images} distinct validation images."


def test_table(found: Evaluation) -> Table:
    """Build the table of the protocol's figure for every model, with paired differences."""
    baselines = found.labels[:-1]
    rows = []
    for label in found.labels:
        mean = summary(found.figure(label)).mean
        gains = (found.gain(label, baseline) for baseline in baselines)
        rows.append(
            (
                LABELS[label],
                percent(mean),
                percent(found.deviation(label)),
                *("" if gain is None else _difference(gain) for gain in gains),
            )
        )
    headings = ("", "mean", "deviation", *(f"over {LABELS[label]}" for label in baselines))
    title = f"{_FIGURES[found.protocol].capitalize()} (%)"
    note = f"{found.images} test images; {found.draws}. " + (
        "Deviation: sample standard deviation over draws. "
        "In brackets: 95 % intervals of the mean paired difference in points, with the test images "
        "as the sample and with the draws as the sample (Student's t)."
        if len(found.seeds) > 1
        else "In brackets: 95 % interval of the mean paired difference in points, with the test "
        "images as the sample."
    )
    return Table("winner", title, headings, tuple(rows), note)


def _values(source: Source) -> dict[int, float]:
    return {r.number: r.accuracy for r in source.of("COMPLETE") if r.accuracy is not None}


def _difference(gain: Gain) -> str:
    named = {"images": gain.over_images, "draws": gain.over_draws}
    intervals = [
        f"{what} [{100 * one.low:+z.2f}, {100 * one.high:+z.2f}]"
        for what, one in named.items()
        if one is not None and one.low is not None and one.high is not None
    ]
    return f"{100 * gain.mean:+z.2f} ({', '.join(intervals)})"


def _configuration(source: Source) -> Table:
    """Build the table of the winner's settings, with those of the paper if trial 0 has finished."""
    assert source.best is not None
    own = TrialConfig.from_dict(source.best.config).flat()
    first = source.results.get(0)
    paper = TrialConfig.from_dict(first.config).flat() if first else {}
    searched = set(source.best.parameters)
    rows = tuple(
        (name, _shown(value), _shown(paper.get(name, "-")), "searched" if name in searched else "")
        for name, value in own.items()
    )
    title = f"Configuration of trial {source.best.number}"
    headings = ("setting", "winner", "the paper's (trial 0)", "")
    return Table("configuration", title, headings, rows)


def _shown(value: object) -> str:
    """Format a value with six digits; `trials.parquet` has full precision."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
