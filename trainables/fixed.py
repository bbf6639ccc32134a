"""Fixed stages: what every trial of a sweep begins with is trained once, and kept.

What such a stage has learned depends on its configuration, the draw and the backbone. Under the
digest of these it lies in the machine's cache, for all its processes, and in the sweep's folder,
for all its machines. One process trains it, the others of the machine wait; the system lets go of
the lock of one that dies.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask, Learned
from trainables.storage import LocalStorage, Storage, open_storage
from trainables.store import cache_folder, explained, locked
from trainables.tensor_file import read_checked, write_checked
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig

STAGES = "stages"
"""Where they lie in a sweep's folder."""
_VERSION = 2  # of what a training is: another number, and all are trained again


def learned(
    config: TrialConfig, bench: EncodedTask, episode: Episode
) -> tuple[Learned, EncodedTask]:
    """What the stage `config` learns before `bench`, which is that of the stage before it, and the
    workbench of the next stage. Raises what a `Trainer` raises, and `StorageError`."""
    key = (config.fingerprint(), episode)
    if key not in bench.learned:
        name = stage_name(config, episode, bench.source, bench.backbone.fingerprint)
        folder = cache_folder() / STAGES
        with locked(folder / name):
            cache = LocalStorage(folder)
            shared = open_storage(bench.stages) if bench.stages else None
            artifact = _find(name, cache, shared) or _train(config, bench, episode, name, shared)
            if not cache.exists(name):
                with explained(folder / name):
                    write_checked(cache, name, *artifact)
        trainer = Trainer(config, bench, episode)
        trainer.load_artifact(*artifact)
        bench.learned[key] = artifact, trainer.merged_backbone()
    return bench.learned[key]


def stage_name(config: TrialConfig, episode: Episode, source: DataSource, backbone: str) -> str:
    """The file's name. `backbone` is the fingerprint of the one that the stage is trained on, the
    stages before it included. Raises `DataError`."""
    drawn = source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
    own = config.for_episode(episode)
    facts = {
        "config": own.to_dict() | {"before": None, "fixed": True, "preset": ""},
        "episode": asdict(episode),
        "split": drawn.train.fingerprint,
        "content": drawn.train.images.content(),
        "classes": source.dataset(episode.dataset, episode.half).class_names,
        "backbone": backbone,
        "version": _VERSION,
    }
    text = json.dumps(facts, sort_keys=True).encode()
    return f"{hashlib.sha256(text).hexdigest()}.safetensors"


def _find(name: str, cache: Storage, shared: Storage | None) -> Learned | None:
    found = read_checked(cache, name)
    if found is None:
        cache.delete(name)  # damaged, if it is there
        found = read_checked(shared, name) if shared else None
    return found


def _train(
    config: TrialConfig, bench: EncodedTask, episode: Episode, name: str, shared: Storage | None
) -> Learned:
    trainer = Trainer(config, bench, episode)
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    artifact = trainer.artifact()
    if shared is not None:
        write_checked(shared, name, *artifact)
    return artifact
