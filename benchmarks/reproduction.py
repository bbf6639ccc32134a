"""CPU time of TaskRes's main table at real scale: 11 data sets x 5 shots x 3 draws on features.

    python -m benchmarks.reproduction [--only DATASET ...]

writes a random feature bundle of each data set's published size to a temporary folder (900 MB; only
numbers of classes and images matter for the time), then trains some epochs of each data set and
number of shots, and classifies each test split once. CPU time is measured rather than wall time, so
other programs on the machine matter little. Training times are extrapolated by the number of
epochs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from search.papers.cells import row_config
from search.papers.schema import papers
from trainables.data.benchmarks.layouts import ALL11, LAYOUTS
from trainables.data.sealed import TestPermit
from trainables.encoded_task import EncodedTask
from trainables.presets import task_facts
from trainables.stages import open_training
from trainables.trial import Episode, TaskSpec

_DIMENSION = 1024  # of RN50
_POOL = 20  # training rows per class
_EPOCHS = 3  # timed, after one that warms up
_SHOTS = (1, 2, 4, 8, 16)
_DRAWS = 3
_CORES = 2


def write_bundles(folder: Path, names: Sequence[str]) -> None:
    """Write a bundle of random features per data set, in half precision as a user would."""
    rng = torch.Generator().manual_seed(0)
    for name in names:
        counts = LAYOUTS[name].counts
        sizes = {"train": _POOL * counts.classes, "val": 4 * counts.classes, "test": counts.test}
        tensors = {"class_features": torch.randn(counts.classes, _DIMENSION, generator=rng)}
        for split, size in sizes.items():
            features = torch.randn(size, _DIMENSION, generator=rng)
            tensors[f"{split}_features"] = features.half()
            tensors[f"{split}_labels"] = torch.arange(size) % counts.classes
        classes = json.dumps([f"class {label}" for label in range(counts.classes)])
        metadata = {"class_names": classes, "backbone": "random", "logit_scale": "100.0"}
        save_file(tensors, folder / f"{name}.safetensors", metadata)


def train_seconds(encoded: EncodedTask, task: TaskSpec, name: str, shots: int) -> float:
    """CPU seconds of one training with the paper's setting."""
    row = next(r for r in papers()["taskres"].tables["table-8"].rows if r.method == "taskres")
    episode = Episode(task.backbone, shots, 1)
    facts = replace(task_facts(task, encoded.source, "resnet", episode), dataset=name)
    trainer = open_training(row_config(row, facts), encoded, episode)
    trainer.run_epoch(validate=False)
    start = time.process_time()
    for _ in range(_EPOCHS):
        trainer.run_epoch(validate=False)
    return (time.process_time() - start) / _EPOCHS * trainer.epochs


def test_seconds(encoded: EncodedTask, task: TaskSpec) -> float:
    """CPU seconds for reading and classifying a test split once."""
    trainer = open_training(
        row_config(
            papers()["taskres"].tables["table-4"].rows[0],
            task_facts(task, encoded.source, "resnet", task.episodes[0]),
        ),
        encoded,
        task.episodes[0],
    )
    start = time.process_time()
    dataset = encoded.source.dataset(task.backbone)
    trainer.logits(encoded.view(dataset.sealed_split(TestPermit(dataset.name)), dataset.flip))
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ALL11, default=ALL11, metavar="DATASET")
    names = parser.parse_args().only
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_bundles(Path(folder), names)
        _measure(Path(folder), names)


def _measure(folder: Path, names: Sequence[str]) -> None:
    total = 0.0
    print(f"{'data set':16}" + "".join(f"{n:>4} shots" for n in _SHOTS) + "      test  (CPU s)")
    for name in names:
        spec = f"bundle:{folder / name}.safetensors"
        task = TaskSpec((spec,), spec, (1,), (1,), draws="seeded-capped")
        encoded = EncodedTask(spec, "cpu", task.source(""))
        trained = [train_seconds(encoded, task, name, shots) for shots in _SHOTS]
        tested = test_seconds(encoded, task)
        total += _DRAWS * (sum(trained) + len(_SHOTS) * tested)
        print(f"{name:16}" + "".join(f"{s:10.1f}" for s in [*trained, tested]))
    cells = len(names) * len(_SHOTS) * _DRAWS
    print(
        f"{cells} cells: {total / 60:.1f} CPU minutes, {total / 60 / _CORES:.1f} on {_CORES} cores"
    )


if __name__ == "__main__":
    main()
