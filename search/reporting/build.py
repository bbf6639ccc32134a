"""The report that a sweep writes of itself when it has come to its end."""

from __future__ import annotations

import logging

from trainables.storage import Storage, split

logger = logging.getLogger(__name__)

REPORT = "report"
"""The folder of the report in a sweep's folder."""


def has_report(sweep: Storage) -> bool:
    """Whether a report was written to its end; its page comes last."""
    return sweep.exists(f"{REPORT}/report.html")


def report_at_end(sweep: Storage) -> None:
    """Write the report of a finished sweep. Its results are safe: whatever fails here is a
    warning."""
    try:
        # Matplotlib and the rest take seconds, which a sweep need not wait for when it starts.
        from search.reporting.source import source_of
        from search.reporting.write import write_report

        write_report(source_of(sweep))
    except Exception as error:
        name = split(sweep.location)[1]
        logger.warning(
            "The report could not be written: %s. Afterwards: python -m search.report %s",
            error,
            name,
        )
