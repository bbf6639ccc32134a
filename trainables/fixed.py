"""Fixed stages: training that every trial of a sweep begins with is done once and kept.

The result of such a stage depends on its configuration, the draw and the backbone. Under the digest
of these it is kept in the machine's cache, for all its processes, and in the sweep's folder, for
all its machines. One process trains it while others of the machine wait; the operating system
releases the lock of a process that dies.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from trainables.core.files import cache_folder
from trainables.core.storage import LocalStorage, Storage, open_storage
from trainables.core.store import explained, locked
from trainables.core.tensor_file import read_checked, write_checked
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask, Learned
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig

STAGES = "stages"
"""Folder of their results in a sweep's folder."""
_VERSION = 2  # of the training code: another number, and everything is trained again


def learned(
    config: TrialConfig, encoded: EncodedTask, episode: Episode
) -> tuple[Learned, EncodedTask]:
    """The result of the fixed stage `config` on `encoded`, which is that of the stage before it,
    and the encoded task of the next stage. Raises what a `Trainer` raises, and `StorageError`."""
    key = (config.fingerprint(), episode)
    if key not in encoded.learned:
        name = stage_name(config, episode, encoded.source, encoded.backbone.fingerprint)
        folder = cache_folder() / STAGES
        with locked(folder / name):
            cache = LocalStorage(folder)
            shared = open_storage(encoded.stages) if encoded.stages else None
            artifact = _find(name, cache, shared) or _train(config, encoded, episode, name, shared)
            if not cache.exists(name):
                with explained(folder / name):
                    write_checked(cache, name, *artifact)
        trainer = Trainer(config, encoded, episode)
        trainer.load_artifact(*artifact)
        encoded.learned[key] = artifact, trainer.merged_backbone()
    return encoded.learned[key]


def stage_name(config: TrialConfig, episode: Episode, source: DataSource, backbone: str) -> str:
    """File name of a stage's result. `backbone` is the fingerprint of the backbone that the stage
    is trained on, which covers the stages before it. Raises `DataError`."""
    drawn = source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
    facts = _facts(replace(config, before=None), episode, source, backbone)
    return f"{_digest(facts | {'content': drawn.train.images.content()})}.safetensors"


def training_key(config: TrialConfig, episode: Episode, source: DataSource, backbone: str) -> str:
    """Digest of everything that the result of a training depends on, wherever the images are on
    this machine. Raises `DataError`."""
    return _digest(_facts(config, episode, source, backbone))


def _facts(
    config: TrialConfig, episode: Episode, source: DataSource, backbone: str
) -> dict[str, Any]:
    drawn = source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
    dataset = source.dataset(episode.dataset, episode.half)
    own: dict[str, Any] = {"prompts": source.prompts} if source.prompts else {}
    if given := dataset.prompts("single").given:
        own |= {"given": given}
    return own | {
        "config": _plain(config.for_episode(episode)),
        "episode": asdict(episode),
        "split": drawn.train.fingerprint,
        "classes": dataset.class_names,
        "backbone": backbone,
        "version": _VERSION,
    }


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _plain(config: TrialConfig) -> dict[str, Any]:
    """The configuration without what does not change the result: its origin."""
    before = _plain(config.before) if config.before else None
    return config.to_dict() | {"before": before, "fixed": True, "preset": ""}


def _find(name: str, cache: Storage, shared: Storage | None) -> Learned | None:
    found = read_checked(cache, name)
    if found is None:
        cache.delete(name)  # damaged, if it is there
        found = read_checked(shared, name) if shared else None
    return found


def _train(
    config: TrialConfig, encoded: EncodedTask, episode: Episode, name: str, shared: Storage | None
) -> Learned:
    trainer = Trainer(config, encoded, episode)
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    artifact = trainer.artifact()
    if shared is not None:
        write_checked(shared, name, *artifact)
    return artifact
