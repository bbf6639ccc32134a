"""The winner of a finished sweep, as a start for another one."""

from __future__ import annotations

import dataclasses

from search.core.config import SweepConfig
from search.core.init_from import Start
from search.core.objectives import winner_of
from search.core.problems import UsageError
from search.core.results import trial_folder
from search.core.sweep_folder import find_sweep
from search.core.task import fresh_draws
from search.evaluation.record import Evaluation, read_evaluation
from trainables.core.records import parse_json
from trainables.core.storage import Storage, StorageError, join, open_storage, split
from trainables.core.tensor_file import Content, read_tensors, write_checked
from trainables.data.registry import DataSource
from trainables.fixed import STAGES, stage_name
from trainables.methods.registry import METHODS
from trainables.trial import Episode, TrialConfig


def read_start(where: str, storage: str) -> Start:
    """The winner of the sweep `where`: a name in `storage`, or a folder's path or URI. Raises
    `UsageError`."""
    location = where if "/" in where else join(storage, where)
    try:
        parent, name = split(location)
        folder = find_sweep(name, parent)
        record = folder.record
        best = winner_of(folder.results(), record.config.select)
        judged = read_evaluation(folder.files)
    except StorageError as error:
        raise UsageError([f"--init-from must name a sweep that can be read: {error}."]) from error
    config = record.config
    if best is None or judged is None or judged.winner != best.number:
        raise UsageError(
            [
                f"--init-from needs a finished sweep, and '{where}' is not finished: finish it "
                f"with --resume {config.name}."
            ]
        )
    stage = TrialConfig.from_dict(best.config)
    if not METHODS[stage.method].changes_backbone:
        able = ", ".join(n for n, method in METHODS.items() if method.changes_backbone)
        raise UsageError(
            [
                f"--init-from needs a sweep whose trials change the backbone ({able}), and "
                f"'{where}' searched {config.space}: what {stage.method} learns "
                "belongs to the classes."
            ]
        )
    return Start(
        folder.files.location,
        record.id,
        best.number,
        _fixed(stage),
        config.task,
        record.fingerprints,
    )


def _fixed(stage: TrialConfig) -> TrialConfig:
    before = _fixed(stage.before) if stage.before else None
    return dataclasses.replace(stage, before=before, fixed=True)


def share_start(config: SweepConfig, source: DataSource, backbone: str, sweep: Storage) -> str:
    """Folder in which workers keep the results of the start's training; empty without a start.

    Copies there what the other sweep has trained with the same configuration on the same draws;
    what its folder no longer has is trained again. `backbone` is the backbone's fingerprint.
    """
    start = config.init_from
    if start is None:
        return ""
    shared = sweep.child(STAGES)
    if start.stage.before is None:  # else the artifact is that of several stages
        there = set(shared.files())
        fresh = fresh_draws(config.task, source, config.eval_seeds).seeds
        task = dataclasses.replace(config.task, seeds=(*config.task.seeds, *fresh))
        for episode in task.episodes:
            name = stage_name(start.stage, episode, source, backbone)
            if name not in there and (known := _trained(start, episode)) is not None:
                write_checked(shared, name, *known)
    return shared.location


def _trained(start: Start, episode: Episode) -> Content | None:
    """The other sweep's result on a draw, if its folder still has it."""
    try:
        return _artifact(start, episode, open_storage(start.location))
    except StorageError:  # the other folder may be unreachable by now
        return None


def _artifact(start: Start, episode: Episode, other: Storage) -> Content | None:
    """The result on a draw of the search, or on one of the evaluation."""
    if episode in start.task.episodes:
        label = f"-{start.task.label(episode)}" if len(start.task.episodes) > 1 else ""
        return read_tensors(other, f"{trial_folder(start.trial)}/artifact{label}.safetensors")
    judged = read_evaluation(other)
    if judged is None or episode.seed not in judged.seeds or not _is_of(judged, start, other):
        return None
    return read_tensors(other, f"winner/artifact-{start.task.label(episode)}.safetensors")


def _is_of(judged: Evaluation, start: Start, other: Storage) -> bool:
    """Whether the evaluation still is that of the start: more trials may have replaced it."""
    try:
        config = TrialConfig.from_dict(parse_json(other.read("winner/config.json")))
    except (FileNotFoundError, ValueError):
        return False
    return judged.winner == start.trial and _fixed(config) == start.stage
