"""Names of a report's files, and the check whether a report is up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from search.core.results import Result
from search.evaluation.record import Evaluation
from trainables.core.storage import Storage

REPORT = "report"
"""Folder of the report in the sweep's folder."""
PAGE = "report.html"
"""The page, in the report's folder."""
INPUTS = "inputs.sha256"
"""File with the digest of the report's inputs, written last."""
_LONGEST = 80  # characters of a folder name made of the names of compared sweeps


def report_folder(others: Sequence[str] = ()) -> str:
    """Return the report's folder within the sweep's folder; each comparison has a separate one.

    `others` are the names of the compared sweeps. If they are too long together, a hash replaces
    them.
    """
    if not others:
        return REPORT
    names = "+".join(others)
    if len(names) > _LONGEST:
        names = hashlib.sha256(names.encode()).hexdigest()[:12]
    return f"{REPORT}/compare-{names}"


def has_report(sweep: Storage) -> bool:
    """Whether the page of a report exists; it is written after the tables and figures."""
    return sweep.exists(f"{REPORT}/{PAGE}")


def report_inputs(
    results: Mapping[int, Result], evaluation: Evaluation | None, others: Sequence[str] = ()
) -> str:
    """Return the digest of a report's inputs; `others` are the names of the compared sweeps."""
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
