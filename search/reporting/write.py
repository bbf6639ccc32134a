"""Writes the report to the sweep's folder `report`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from search.reporting.calibration import calibration_section
from search.reporting.changes import changes_section
from search.reporting.classes import classes_section
from search.reporting.confusion import confusion_section
from search.reporting.dependence import dependence_section
from search.reporting.evaluated import unseen_section
from search.reporting.files import INPUTS, REPORT, report_inputs
from search.reporting.history import history_section
from search.reporting.mask_figures import mask_section
from search.reporting.page import render
from search.reporting.provenance import provenance_section
from search.reporting.residuals import residual_section
from search.reporting.section import Section
from search.reporting.shots import shots_section
from search.reporting.source import Source
from search.reporting.tradeoff import tradeoff_section
from search.reporting.trials import trials_parquet
from search.reporting.winner_section import winner_section

PAGE = "report.html"
_LONGEST = 80  # characters of a folder name made of the names of compared sweeps
_OWN = ("tables/", "figures/")  # folders that only the report writes to; users may add others


def sections_of(source: Source, others: Sequence[Source] = ()) -> list[Section]:
    """Build the sections that apply to this sweep, in page order."""
    sources = (source, *others)
    found = [
        winner_section(source),
        shots_section(sources),
        unseen_section(source),
        changes_section(source),
        classes_section(source),
        confusion_section(source),
        calibration_section(source),
        history_section(source),
        dependence_section(source),
        tradeoff_section(source),
        residual_section(sources),
        mask_section(sources),
        provenance_section(source),
    ]
    return [section for section in found if section is not None]


def report_folder(others: Sequence[Source] = ()) -> str:
    """Return the report's folder within the sweep's folder; each comparison has a separate one.

    Names that are too long together are replaced by a hash.
    """
    if not others:
        return REPORT
    names = "+".join(other.name for other in others)
    if len(names) > _LONGEST:
        names = hashlib.sha256(names.encode()).hexdigest()[:12]
    return f"{REPORT}/compare-{names}"


def write_report(source: Source, others: Sequence[Source] = ()) -> list[str]:
    """Write the report to `report_folder(others)` and return the names of its files.

    The page is written after its tables and figures, so that they are never older than the page.
    Raises `StorageError`.
    """
    sections = sections_of(source, others)
    folder = source.sweep.child(report_folder(others))
    files = {"trials.parquet": trials_parquet(source)}
    for section in sections:
        for table in (*section.tables, *section.files):
            for ending, text in (
                ("md", table.markdown()),
                ("tex", table.latex()),
                ("csv", table.csv()),
            ):
                files[f"tables/{table.name}.{ending}"] = text.encode()
        for figure in section.figures:
            files[f"figures/{figure.name}.png"] = figure.png
            files[f"figures/{figure.name}.svg"] = figure.svg
    files[PAGE] = render(source, others, sections).encode()
    earlier = {name for name in folder.files() if name.startswith(_OWN)}
    for name, content in files.items():
        folder.write(name, content)
    for name in earlier - set(files):  # left by an earlier report
        folder.delete(name)
    inputs = report_inputs(source.results, source.evaluation, [other.name for other in others])
    folder.write(INPUTS, f"{inputs}\n".encode())  # last: marks the report as complete
    return [*files, INPUTS]
