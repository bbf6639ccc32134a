"""The result: headline numbers, the winner's test accuracy, its gains and its configuration."""

from __future__ import annotations

from search.core.results import counted
from search.evaluation.record import LABELS, Evaluation, Gain
from search.evaluation.statistics import separation_note, summary
from search.reporting.document import Headline, Section, Table, percent
from search.reporting.figures import shown_number
from search.reporting.provenance import command
from search.reporting.source import Source
from search.reporting.trials import first_name
from trainables.core.protocols import Protocol
from trainables.core.text import amount
from trainables.trial import TrialConfig

_FIGURES: dict[Protocol, str] = {
    "few-shot": "test accuracy",
    "base-to-new": "harmonic mean of base and new test accuracy",
    "domain-generalization": "mean test accuracy on the shifts",
    "cross-dataset": "mean test accuracy on the other data sets",
}


def headlines(source: Source) -> list[Headline]:
    """Return the numbers at the top of the page: accuracies, gains with intervals, trials."""
    best, found, numbers = source.best, source.judged, []
    if found is not None:
        spread = found.deviation("winner")
        numbers.append(
            Headline(
                f"{_FIGURES[found.protocol]}, the winner",
                f"{percent(summary(found.figure('winner')).mean, 1)} %",
                f"{found.images} images, {amount(len(found.seeds), 'draw')}"
                + (f", deviation {percent(spread, 1)}" if spread is not None else ""),
            )
        )
        for gain in found.gains:
            base = percent(summary(found.figure(gain.baseline)).mean, 1)
            label = f"over {LABELS[gain.baseline]} ({base} %)"
            numbers.append(Headline(label, f"{100 * gain.mean:+z.1f} points", _interval(gain)))
    if best is not None and best.accuracy is not None:
        chosen = f"trial {best.number}, the best of {len(source.of('COMPLETE'))} completed"
        value = f"{percent(best.accuracy, 1)} %"
        numbers.append(Headline("validation accuracy, the winner", value, chosen))
    states = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    counts = [f"{len(source.of(state))} {word}" for word, state in states.items()]
    counts += [f"{len(source.issued)} unfinished"] * bool(source.issued)
    done = f"{counted(source.results.values(), source.config.trials)} of {source.config.trials}"
    return [*numbers, Headline("trials finished", done, ", ".join(counts))]


def winner_section(source: Source) -> Section:
    """Build the section: test results, tied trials, configuration and command."""
    best, copied = source.best, command(source.config)
    if best is None:
        why = "There is no winner: no trial has completed yet."
        return Section("winner", "The winner", (why,), command=copied)
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
        chosen = source.judged.selection
        notes += [chosen.sentence] if chosen is not None and chosen.sentence else []
        notes += [gain.sentence() for gain in source.judged.gains]
        notes += [source.judged.draws_note] * bool(source.judged.draws_note)
    else:
        notes.append(source.unjudged)
    tables += _configuration(source)
    return Section("winner", "The winner", tuple(notes), tuple(tables), command=copied)


def tie_note(source: Source) -> str:
    """Return one sentence on how many trials are tied with the winner."""
    images = source.record.val_images
    if not images:
        return (
            "The number of trials tied with the winner is unknown: the sweep was started by a "
            "version that did not record the number of validation images."
        )
    values = {r.number: r.accuracy for r in source.of("COMPLETE") if r.accuracy is not None}
    note = separation_note(values, int(images))
    return note or f"No other trial is tied with it on {images} distinct validation images."


def test_table(found: Evaluation) -> Table:
    """Build the table of the protocol's figure for every model, with paired differences."""
    baselines = found.labels[:-1]
    rows = []
    for label in found.labels:
        gains = (found.gain(label, baseline) for baseline in baselines)
        cells = (percent(summary(found.figure(label)).mean), percent(found.deviation(label)))
        rows.append((LABELS[label], *cells, *("" if g is None else _difference(g) for g in gains)))
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


def _difference(gain: Gain) -> str:
    return f"{100 * gain.mean:+z.2f} ({', '.join(_intervals(gain, 2))})"


def _interval(gain: Gain) -> str:
    word = {"real": "real gain", "loss": "real loss", "none": "no gain", "uncertain": "uncertain"}
    return "; ".join([word[gain.verdict], f"95 %: {', '.join(_intervals(gain, 1))}"])


def _intervals(gain: Gain, digits: int) -> list[str]:
    named = {"images": gain.over_images, "draws": gain.over_draws}
    return [
        f"{what} [{100 * one.low:+z.{digits}f}, {100 * one.high:+z.{digits}f}]"
        for what, one in named.items()
        if one is not None and one.low is not None and one.high is not None
    ]


def _configuration(source: Source) -> list[Table]:
    """Build the tables of the winner's settings, with those of the paper if trial 0 has finished:
    the searched ones, and the others, which are folded."""
    assert source.best is not None
    own = TrialConfig.from_dict(source.best.config).flat()
    first = source.results.get(0)
    paper = TrialConfig.from_dict(first.config).flat() if first else {}
    searched = dict.fromkeys([*source.best.parameters, *(n for n in own if n != "preset")])
    rows = [
        (n, shown_number(own[n]), shown_number(paper.get(n, "-"))) for n in searched if n in own
    ]
    varied = {name for result in source.results.values() for name in result.parameters}
    headings = ("setting", "winner", first_name(source))
    one = tuple(row for row in rows if row[0] in varied)
    rest = tuple(row for row in rows if row[0] not in varied)
    title = f"Configuration of trial {source.best.number}: the searched settings"
    tables = [Table("configuration", title, headings, one)] if one else []
    folded = f"Its {len(rest)} fixed settings"
    return [*tables, Table("configuration-fixed", folded, headings, rest, folded=True)]
