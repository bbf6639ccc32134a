"""Few-shot draws: a few labelled images a class, reproducible from their seed alone.

Notation: k shots, n images, m drawn images.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainables.data.base import DataError, Dataset, FeatureRows, Split, SplitName
from trainables.data.benchmarks.imagenet import ImageNet
from trainables.data.class_subsets import Half, classes_of
from trainables.data.shots_file import listed_shots, shots_file, shots_file_problems

VAL_SHOTS = 4
"""Upper limit of validation images a class: min(k, 4), the convention of CoOp and its heirs."""


@dataclass(frozen=True)
class FewShot:
    """What a trial may see: disjoint images to train on and to be judged by."""

    train: Split
    """k images a class."""
    val: Split
    """min(k, 4) images a class, from the data set's own validation pool."""

    def half(self, half: Half) -> FewShot:
        """The images of these classes, numbered from 0; raises `DataError`.

        As in the field, a half's draw is the whole draw restricted to it.
        """
        if half == "all":
            return self
        classes = classes_of(half, int(self.train.labels.max()) + 1)
        return FewShot(self.train.of_classes(classes), self.val.of_classes(classes))


def sample_shots(labels: Tensor, shots: int, seed: int, fingerprint: str = "") -> Tensor:
    """Positions of `shots` images of every class: int64 [m], class by class.

    Pure: each class has its own generator, keyed by (fingerprint, class, seed), so a draw depends
    on no global state and on no other class. Nested: the draw of k shots starts, in each class,
    with the draw of k - 1. Raises `DataError` when a class has fewer images than `shots`.
    """
    _check(shots)
    classes, counts = labels.unique(sorted=True, return_counts=True)
    fewest = int(counts.min())
    if fewest < shots:
        raise DataError(
            f"Every class needs at least as many images as there are shots: class "
            f"{int(classes[counts.argmin()])} has {fewest}, shots is {shots}. "
            f"Use at most --shots {fewest}."
        )
    chosen = []
    by_class = labels.argsort(stable=True).split(counts.tolist())
    for label, members in zip(classes.tolist(), by_class, strict=True):
        key = hashlib.sha256(f"{fingerprint}/{label}/{seed}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        chosen.append(members[torch.randperm(len(members), generator=rng)[:shots]])
    return torch.cat(chosen)


def sample_as_coop(labels: Tensor, shots: int, rng: random.Random) -> Tensor:
    """Positions as CoOp and its heirs draw them: int64 [m], or all of a class that has fewer.

    Classes come in the order of their first image. The draw depends on the order of the list and
    is not nested. With `rng` fresh from the seed, and train drawn before validation, it is the
    published one.
    """
    _check(shots)
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(position)
    drawn = [rng.sample(m, shots) if len(m) >= shots else m for m in members.values()]
    return torch.tensor([position for some in drawn for position in some], dtype=torch.int64)


def draw_few_shot(dataset: Dataset, shots: int, seed: int, draws: str = "seeded") -> FewShot:
    """The few-shot train and validation sets of one (shots, seed); raises `DataError`.

    `draws` is the rule: `seeded` is `sample_shots`, over images in the order of their names; `coop`
    is `sample_as_coop`, by which the field's published results were made; `file:PATTERN` reads
    published lists (see `shots_file.py`): ImageNet's have both parts from its official training
    set.
    """
    pools: dict[SplitName, Split] = {"train": dataset.split("train"), "val": dataset.split("val")}
    wanted: dict[SplitName, int] = {"train": shots, "val": min(shots, VAL_SHOTS)}
    _check(shots)
    for split, pool in pools.items():
        _check_classes(dataset, split, pool)
    match draws.partition(":"):
        case ("seeded", "", ""):
            for split, k in wanted.items():
                _check_size(dataset, split, pools[split], k, shots)
            chosen = {split: _by_name(pools[split], k, seed) for split, k in wanted.items()}
        case ("coop", "", ""):
            rng = random.Random(seed)  # one stream, of which train takes the first part
            chosen = {s: sample_as_coop(pools[s].labels, k, rng) for s, k in wanted.items()}
        case ("file", ":", pattern) if pattern:
            path = shots_file(pattern, dataset.name, shots, seed)
            if isinstance(dataset, ImageNet):  # who published a list did not carve val as we do
                pools = dict.fromkeys(pools, dataset.official_train)
            chosen = listed_shots(path, dataset, pools, wanted)
        case _:
            raise DataError(_unknown(draws))
    return FewShot(pools["train"].take(chosen["train"]), pools["val"].take(chosen["val"]))


def draws_problems(
    draws: str, datasets: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> list[str]:
    """What is wrong with a rule of drawing for all these draws, before any data is opened."""
    match draws.partition(":"):
        case ("seeded" | "coop", "", ""):
            return []
        case ("file", ":", pattern) if pattern:
            return shots_file_problems(pattern, datasets, shots, seeds)
        case _:
            return [_unknown(draws)]


def absolute_draws(draws: str) -> str:
    """The rule with the path in it made absolute: workers run in folders of their own."""
    head, colon, pattern = draws.partition(":")
    return f"{head}:{Path(pattern).expanduser().absolute()}" if colon and pattern else draws


def readable(split: Split) -> Split:
    """The split without the images that cannot be read, each of which is tried.

    Raises `DataError` where a class has none left.
    """
    if isinstance(split.images, FeatureRows):  # there is nothing to read
        return split
    kept, fault = [], ""
    for position in range(len(split.images)):
        try:
            split.images.read(position)
            kept.append(position)
        except DataError as error:
            fault = fault or str(error)
    if not fault:
        return split
    part = split.take(torch.tensor(kept, dtype=torch.int64))
    lost = set(split.labels.tolist()) - set(part.labels.tolist())
    if lost:
        raise DataError(
            f"Every class needs an image that can be read, class {min(lost)} has none of "
            f"{int((split.labels == min(lost)).sum())}: restore them, or, where they were drawn, "
            f"use another --seeds. The first fault: {fault}"
        )
    return part


def _by_name(pool: Split, shots: int, seed: int) -> Tensor:
    """`sample_shots` whatever the order in which the pool lists its images."""
    order = torch.tensor(sorted(range(len(pool.images)), key=pool.images.name), dtype=torch.int64)
    return order[sample_shots(pool.labels[order], shots, seed, pool.fingerprint)]


def _check(shots: int) -> None:
    if shots < 1:
        raise DataError(f"shots must be at least 1, got {shots}.")


def _check_classes(dataset: Dataset, split: str, pool: Split) -> None:
    names = dataset.class_names
    count = pool.labels.bincount(minlength=len(names))
    if not count.all():
        label = int(count.argmin())
        raise DataError(
            f"Every class needs an image in each split, class {label} ('{names[label]}') of "
            f"'{dataset.name}' has none in {split}: add some, or remove the class."
        )


def _check_size(dataset: Dataset, split: str, pool: Split, wanted: int, shots: int) -> None:
    names = dataset.class_names
    count = pool.labels.bincount(minlength=len(names))
    label = int(count.argmin())
    if (fewest := int(count[label])) < wanted:
        raise DataError(
            "Every class needs at least as many images as there are shots, in val as many up to "
            f"{VAL_SHOTS}: in {split} of '{dataset.name}' the smallest is '{names[label]}', class "
            f"{label} has {fewest}, shots is {shots}. Use at most --shots {fewest}."
        )


def _unknown(draws: str) -> str:
    return (
        f"A rule of drawing is 'seeded', 'coop' or 'file:PATTERN', got '{draws}': use one of these."
    )
