"""Chooses what a sweep's result consists of, and stores it in `selection.json`.

The file is derived: it is computed again from results and validation predictions if results have
changed. It is stored because computing it takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch

from search.core.objectives import winner_of
from search.core.results import Result, trial_folder
from search.selection.record import Selection, Share
from search.selection.rules import RULES, Evidence
from trainables.core.records import RecordError, read_record
from trainables.core.storage import Storage
from trainables.methods.registry import METHODS
from trainables.predictions import ValidationPredictions, read_predictions
from trainables.trial import TrialConfig

SELECTION = "selection.json"
ZERO_SHOT = "selection"
"""Folder with the validation predictions of the zero-shot model, in the sweep's folder."""
ENSEMBLE = "ensemble"
_MOST = 32  # trials that a rule chooses from, the best ones
_VERSION = 1  # of this module and the rules: another number, and results are chosen again


def select(sweep: Storage, results: Mapping[int, Result], choice: str) -> Selection | None:
    """The result of a sweep for `--select CHOICE`; needs a complete trial.

    None if it depends on the zero-shot model's predictions and these are not there yet (folder
    `ZERO_SHOT`), or if the trial that the user has chosen is not complete. Raises `StorageError`.
    """
    leader = winner_of(results, choice)
    if leader is None:
        return None
    is_only = sum(result.state == "COMPLETE" for result in results.values()) == 1
    if choice != ENSEMBLE or is_only:
        rule = "chosen" if choice.isdecimal() else "best"
        return Selection(leader.number, (Share(leader.number, 1.0),), rule)
    if why := ensemble_problem(TrialConfig.from_dict(leader.config)):
        return Selection(leader.number, (Share(leader.number, 1.0),), "best", f"{why}.")
    inputs = _digest(results)
    stored = _read(sweep)
    if stored is not None and stored.inputs == inputs and _is_complete(stored, results):
        return stored
    zero_shot = read_predictions(sweep.child(ZERO_SHOT))
    if zero_shot is None:
        return None
    found = _pool(sweep, results, leader.number, zero_shot, inputs)
    sweep.write(SELECTION, json.dumps(asdict(found), indent=1).encode() + b"\n")
    return found


def _is_complete(selection: Selection, results: Mapping[int, Result]) -> bool:
    """Whether all trials of a selection that was read from a file are complete."""
    numbers = {selection.trial, *(share.trial for share in selection.members)} - {None}
    complete = {number for number, result in results.items() if result.state == "COMPLETE"}
    return numbers <= complete


def ensemble_problem(config: TrialConfig) -> str:
    """Why trials like this one are no members of an ensemble; empty if they can be."""
    method = METHODS[config.method]
    if config.before is not None or method.changes_backbone or method.input_kind == "images":
        return (
            "An ensemble needs models that share one frozen image encoder, and "
            f"{config.methods} changes it"
        )
    return ""


def _pool(
    sweep: Storage,
    results: Mapping[int, Result],
    leader: int,
    zero_shot: ValidationPredictions,
    inputs: str,
) -> Selection:
    """Apply the default rule to the trials whose predictions are there."""
    complete = [r for r in results.values() if r.state == "COMPLETE"]
    complete.sort(key=lambda r: (-(r.value or 0.0), r.number))
    numbers, logs = [], [zero_shot.log_probs]
    for result in complete[:_MOST]:
        found = read_predictions(sweep.child(trial_folder(result.number)))
        if found is not None and _same_rows(found, zero_shot):
            numbers.append(result.number)
            logs.append(found.log_probs)
    if not numbers:
        single = (Share(leader, 1.0),)
        return Selection(leader, single, "best", "No validation predictions are stored.", inputs)
    evidence = Evidence(
        torch.stack(logs).double(),
        zero_shot.labels,
        zero_shot.images,
        0,
        1 + numbers.index(0) if 0 in numbers else None,
    )
    rule, apply = next(iter(RULES.items()))
    weights = apply(evidence).weights
    shares = [
        Share(number, weight)
        for number, weight in zip([None, *numbers], weights, strict=True)
        if weight > 0
    ]
    shares.sort(key=lambda share: -share.weight)
    note = ""
    if [share.trial for share in shares] == [None]:
        note = "Validation does not show that any trial is better than the zero-shot model."
    return Selection(leader, tuple(shares), rule, note, inputs)


def _same_rows(one: ValidationPredictions, other: ValidationPredictions) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def _digest(results: Mapping[int, Result]) -> str:
    ended = [[n, r.state, r.value, r.config] for n, r in sorted(results.items())]
    facts = json.dumps([_VERSION, next(iter(RULES)), ended], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _read(sweep: Storage) -> Selection | None:
    try:
        return read_record(Selection, sweep.read(SELECTION))
    except (FileNotFoundError, RecordError):
        return None
