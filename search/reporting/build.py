"""The report that a sweep writes when it is finished, and whether it is up to date."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

from search.core.results import Result
from search.evaluation.record import Evaluation
from trainables.storage import Storage, split

logger = logging.getLogger(__name__)

REPORT = "report"
"""The folder of the report in a sweep's folder."""
INPUTS = "inputs.sha256"
"""File of the digest of what the report was made from, the last one that is written."""


def has_report(sweep: Storage) -> bool:
    """Whether a report was written to its end; its page comes last."""
    return sweep.exists(f"{REPORT}/report.html")


def report_inputs(
    results: Mapping[int, Result], evaluation: Evaluation | None, others: Sequence[str] = ()
) -> str:
    """Digest of what a report is made from; `others` are the sweeps that it compares with."""
    trials = [(r.number, r.state, r.value, r.ended) for _, r in sorted(results.items())]
    found = None if evaluation is None else hashlib.sha256(evaluation.to_json()).hexdigest()
    text = json.dumps([trials, found, list(others)])
    return hashlib.sha256(text.encode()).hexdigest()


def report_is_current(
    sweep: Storage, results: Mapping[int, Result], evaluation: Evaluation | None
) -> bool:
    """Whether the report was made from these results and this evaluation."""
    try:
        stored = sweep.read(f"{REPORT}/{INPUTS}").decode(errors="replace")
    except FileNotFoundError:
        return False
    return has_report(sweep) and stored.strip() == report_inputs(results, evaluation)


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
