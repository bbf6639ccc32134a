"""Few-shot draws: a few labelled images a class, reproducible from their seed alone.

Notation: k shots, m drawn images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.base import DataError, Dataset, Split

VAL_SHOTS = 4
"""Upper limit of validation images a class: min(k, 4), the convention of CoOp and its heirs."""


@dataclass(frozen=True)
class FewShot:
    """What a trial may see: disjoint images to train on and to be judged by."""

    train: Split
    """k images a class."""
    val: Split
    """min(k, 4) images a class, from the data set's own validation pool."""


def sample_shots(labels: Tensor, shots: int, seed: int, fingerprint: str = "") -> Tensor:
    """Positions of `shots` images of every class: int64 [m], class by class.

    Pure: each class has its own generator, keyed by (fingerprint, class, seed), so a draw depends
    on no global state and on no other class. Nested: the draw of k shots starts, in each class,
    with the draw of k - 1. Raises `DataError` when a class has fewer images than `shots`.
    """
    if shots < 1:
        raise DataError(f"shots must be at least 1, got {shots}.")
    classes, counts = labels.unique(sorted=True, return_counts=True)
    fewest = int(counts.min())
    if fewest < shots:
        raise DataError(
            f"Every class needs at least as many images as there are shots: class "
            f"{int(classes[counts.argmin()])} has {fewest}, shots is {shots}. "
            f"Use at most --shots {fewest}."
        )
    chosen = []
    for label in classes.tolist():
        members = (labels == label).nonzero().flatten()
        key = hashlib.sha256(f"{fingerprint}/{label}/{seed}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        chosen.append(members[torch.randperm(len(members), generator=rng)[:shots]])
    return torch.cat(chosen)


def draw_few_shot(dataset: Dataset, shots: int, seed: int) -> FewShot:
    """The few-shot train and validation sets of one (shots, seed); raises `DataError`."""
    train, val = dataset.split("train"), dataset.split("val")
    val_shots = min(shots, VAL_SHOTS)
    return FewShot(
        train.take(sample_shots(train.labels, shots, seed, train.fingerprint)),
        val.take(sample_shots(val.labels, val_shots, seed, val.fingerprint)),
    )
