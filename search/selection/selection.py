"""What a sweep's result consists of, and its file `selection.json`.

The file is derived: it is computed again from results and validation predictions if results have
changed. It is stored because computing it takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, MinLen

from search.core.objectives import winner_of
from search.core.results import Result, trial_folder
from search.selection.rules import RULES, Evidence
from trainables.core.records import Count, RecordError, read_record
from trainables.core.storage import Storage
from trainables.methods.registry import METHODS
from trainables.predictions import ValidationPredictions, read_predictions
from trainables.trial import Member, TrialConfig

SELECTION = "selection.json"
ZERO_SHOT = "selection"
"""Folder with the validation predictions of the zero-shot model, in the sweep's folder."""
ENSEMBLE = "ensemble"
_MOST = 32  # trials that a rule chooses from, the best ones
_VERSION = 1  # of this module and the rules: another number, and results are chosen again


@dataclass(frozen=True)
class Share:
    """A member of a result."""

    trial: Count | None
    """Number of the trial; None for the zero-shot model."""
    weight: Annotated[float, Gt(0)]
    """Coefficient of its log-probabilities."""


@dataclass(frozen=True)
class Selection:
    """The result of a sweep: one model, or an ensemble whose weighted log-probabilities are
    added."""

    trial: Count
    """The best single trial, or the one that the user has chosen."""
    members: Annotated[tuple[Share, ...], MinLen(1)]
    """The models, the largest weight first."""
    rule: str
    """Name of the rule, see `rules.py`; `best` for the best trial, `chosen` for a trial that the
    user has chosen."""
    note: str = ""
    """A sentence about the choice, or empty."""
    inputs: str = ""
    """Digest of what it was computed from."""
    format: Literal[1] = 1
    """Version of this record."""

    @property
    def is_single(self) -> bool:
        """Whether the result is the trial alone."""
        return len(self.members) == 1 and self.members[0].trial == self.trial

    @property
    def sentence(self) -> str:
        """What the result is, if it is not simply the trial; else empty."""
        if self.is_single:
            return self.note
        names = ["zero-shot" if m.trial is None else f"trial {m.trial}" for m in self.members]
        if len(names) == 1:
            return f"The result is the model {names[0]}. {self.note}".strip()
        total = sum(member.weight for member in self.members)
        shares = (
            f"{name} ({100 * member.weight / total:.0f} %)"
            for name, member in zip(names, self.members, strict=True)
        )
        return (
            f"The result is an ensemble that adds weighted log-probabilities: {', '.join(shares)}."
        )

    def config(self, results: Mapping[int, Result], zero_shot: TrialConfig) -> TrialConfig:
        """The configuration that is trained for this result."""
        members = tuple(
            Member(
                share.weight,
                zero_shot
                if share.trial is None
                else TrialConfig.from_dict(results[share.trial].config),
            )
            for share in self.members
        )
        return members[0].config if len(members) == 1 else TrialConfig.ensemble(members)


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
