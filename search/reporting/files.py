"""The names of a report's files, and whether a report is up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from search.core.results import Result
from search.evaluation.record import Evaluation
from trainables.core.storage import Storage

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
