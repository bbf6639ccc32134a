"""Few-shot draws: a few labelled images per class, reproducible from their seed alone.

Notation: k shots, n images, m drawn images.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.base import (
    AwayError,
    DataError,
    Dataset,
    FeatureRows,
    Images,
    PixelRows,
    Split,
    SplitName,
    fingerprint,
)
from trainables.data.benchmarks.imagenet import ImageNet
from trainables.data.class_subsets import Half, classes_of
from trainables.data.image_files import LEAVE_OUT, ImageFiles
from trainables.data.shots_file import listed_shots, shots_file, shots_file_problems

VAL_SHOTS = 4
"""Upper limit of validation images per class: min(k, 4), the convention of CoOp and its heirs."""
LARGEST = 2**63 - 1
"""Upper limit of seeds and shots, which are stored as 64-bit integers."""
JOINED = "joined"
"""The rule that draws training images from both pools."""
RULES = ("seeded", "seeded-capped", JOINED, "coop")
"""Names of the rules that draw images; `file:PATTERN` reads published draws instead."""

Drawn = dict[int, list[int]]
"""Label -> positions of its drawn images."""
Readable = Callable[[int], bool]
"""Whether the image at a position can be used."""


@dataclass(frozen=True)
class FewShot:
    """The data of one training: images to train on, and others to validate with (with the rule
    `joined` not always others: nothing is validated on them)."""

    train: Split
    """k images per class."""
    val: Split
    """min(k, 4) images per class, from the data set's validation pool."""

    def half(self, half: Half) -> FewShot:
        """Restrict the draw to these classes, numbered from 0; raises `DataError`.

        As in the field, a half's draw is the whole draw restricted to it.
        """
        if half == "all":
            return self
        classes = classes_of(half, int(self.train.labels.max()) + 1)
        return FewShot(self.train.of_classes(classes), self.val.of_classes(classes))


def sample_shots(
    labels: Tensor,
    shots: int,
    seed: int,
    fingerprint: str = "",
    usable: Readable = lambda position: True,
) -> Drawn:
    """Draw `shots` images of every class, or all usable ones of a class that has fewer.

    Pure: each class has its own generator, keyed by (fingerprint, class, seed), so a draw depends
    on no global state and on no other class. Nested: the draw of k shots starts, in each class,
    with the draw of k - 1. An image that is not `usable` is replaced by the next one.
    """
    drawn: Drawn = {}
    classes, counts = labels.unique(sorted=True, return_counts=True)
    by_class = labels.argsort(stable=True).split(counts.tolist())
    for label, members in zip(classes.tolist(), by_class, strict=True):
        key = hashlib.sha256(f"{fingerprint}/{label}/{seed}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        order = members[torch.randperm(len(members), generator=rng)].tolist()
        drawn[label] = _first(order, shots, usable)
    return drawn


def sample_as_coop(
    labels: Tensor, shots: int, rng: random.Random, usable: Readable = lambda position: True
) -> Drawn:
    """Draw images as CoOp and its heirs do: `shots` per class, or all of a class that has fewer.

    Classes come in the order of their first image. The draw depends on the order of the list and
    is not nested. With `rng` fresh from the seed, and train drawn before validation, it is the
    published one. An image that is not `usable` is replaced by a random other one of its class.
    """
    members: Drawn = {}
    for position, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(position)
    drawn: Drawn = {}
    for label, positions in members.items():
        chosen = rng.sample(positions, shots) if len(positions) >= shots else positions
        drawn[label] = _first(chosen, shots, usable)
        if lost := len(chosen) - len(drawn[label]):
            others = sorted(set(positions) - set(chosen))
            random.Random(f"{label}/{chosen}").shuffle(others)
            drawn[label] += _first(others, lost, usable)
    return drawn


def draw_few_shot(
    dataset: Dataset,
    shots: int,
    seed: int,
    draws: str = "seeded",
    skip_unreadable: bool = False,
) -> FewShot:
    """Draw the few-shot train and validation sets of one (shots, seed); raises `DataError`.

    `draws` is the rule. `seeded`: `sample_shots`, over images in the order of their names.
    `seeded-capped`: the same, but smaller classes may have fewer images. `joined`: the same, and
    training images are drawn from both pools, for validation inside them. `coop`: `sample_as_coop`,
    the rule of the field's published results, which also caps. `file:PATTERN`: published lists (see
    `shots_file.py`); those of ImageNet have both splits from its official training set.

    With `skip_unreadable`, images that cannot be read are never drawn, and dropped from lists.
    """
    if shots < 1:
        raise DataError(f"shots must be at least 1, got {shots}.")
    pools: dict[SplitName, Split] = {"train": dataset.split("train"), "val": dataset.split("val")}
    wanted: dict[SplitName, int] = {"train": shots, "val": min(shots, VAL_SHOTS)}
    if draws == JOINED:
        pools["train"] = _join(pools["train"], pools["val"], dataset.name)
    faults: list[str] = []
    usable = {
        name: _readable(pool, faults) if skip_unreadable else (lambda position: True)
        for name, pool in pools.items()
    }
    drawn: dict[SplitName, Drawn]
    match draws.partition(":"):
        case ("seeded" | "seeded-capped" | "joined", "", ""):
            drawn = {
                name: _by_name(pools[name], k, seed, usable[name]) for name, k in wanted.items()
            }
        case ("coop", "", ""):
            rng = random.Random(seed)  # one stream, of which train takes the first part
            drawn = {
                name: sample_as_coop(pools[name].labels, k, rng, usable[name])
                for name, k in wanted.items()
            }
        case ("file", ":", pattern) if pattern:
            path = shots_file(pattern, dataset.name, shots, seed)
            if isinstance(dataset, ImageNet):  # published lists do not have our validation set
                pools = dict.fromkeys(pools, dataset.official_train)
            listed = listed_shots(path, dataset, pools, wanted)
            found = FewShot(pools["train"].take(listed["train"]), pools["val"].take(listed["val"]))
            if skip_unreadable:
                found = FewShot(readable(found.train), readable(found.val))
            return found
        case _:
            raise DataError(_unknown(draws))
    _check_sizes(dataset, drawn, wanted, capped=draws != "seeded", faults=faults)
    chosen = {
        name: torch.tensor([p for positions in found.values() for p in positions])
        for name, found in drawn.items()
    }
    return FewShot(pools["train"].take(chosen["train"]), pools["val"].take(chosen["val"]))


def size_caveat(dataset: Dataset, drawn: FewShot, shots: int) -> tuple[str, ...]:
    """Return a sentence about classes that have fewer training images than shots, if any."""
    counts = drawn.train.labels.bincount(minlength=len(dataset.class_names))
    few = int((counts < shots).sum())
    if not few:
        return ()
    label = int(counts.argmin())
    number = f"{few} of {len(counts)} classes have" if few > 1 else "1 class has"
    return (
        f"With {shots} shots, {number} fewer training images in '{dataset.name}' and all of them "
        f"are used; the smallest is '{dataset.class_names[label]}' with {int(counts[label])}.",
    )


def draws_problems(
    draws: str, datasets: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> list[str]:
    """Return the errors of a rule for all these draws, before any data is opened."""
    for option, values in (("--seeds", seeds), ("--shots", shots)):
        if max(values, default=0) > LARGEST:
            return [
                f"{option} must be at most {LARGEST} (64 bits, fresh draws included), got "
                f"{max(values)}. Use a smaller number."
            ]
    match draws.partition(":"):
        case ("seeded" | "seeded-capped" | "joined" | "coop", "", ""):
            return []
        case ("file", ":", pattern) if pattern:
            return shots_file_problems(pattern, datasets, shots, seeds)
        case _:
            return [_unknown(draws)]


def readable(split: Split) -> Split:
    """Return the split without the images that cannot be read, each of which is tried.

    Raises `DataError` if a class has none left.
    """
    faults: list[str] = []
    usable = _readable(split, faults)
    kept = [position for position in range(len(split.labels)) if usable(position)]
    if not faults:
        return split
    part = split.take(torch.tensor(kept, dtype=torch.int64))
    lost = set(split.labels.tolist()) - set(part.labels.tolist())
    if lost:
        raise _all_lost(split, min(lost), faults[0])
    return part


def check_readable(split: Split) -> None:
    """Raise `DataError` if a class has no image that can be read; decodes as few as possible."""
    faults: list[str] = []
    usable = _readable(split, faults)
    for label in split.labels.unique().tolist():
        if not any(map(usable, (split.labels == label).nonzero().flatten().tolist())):
            raise _all_lost(split, label, faults[-1])


def _all_lost(split: Split, label: int, fault: str) -> DataError:
    return DataError(
        f"Every class needs an image that can be read, class {label} has none of "
        f"{int((split.labels == label).sum())}: restore them. A fault: {fault}"
    )


def _readable(split: Split, faults: list[str]) -> Readable:
    """Decode images to find out which are readable, and append the messages of the others."""
    if isinstance(split.images, FeatureRows):  # there is nothing to decode
        return lambda position: True
    known: dict[int, bool] = {}

    def usable(position: int) -> bool:
        if position not in known:
            try:
                split.images.read(position)
                known[position] = True
            except AwayError:  # what can be read must not depend on the moment
                raise
            except DataError as error:
                faults.append(str(error).replace(LEAVE_OUT, ""))  # they are
                known[position] = False
        return known[position]

    return usable


def _first(order: Sequence[int], count: int, usable: Readable) -> list[int]:
    found: list[int] = []
    for position in order:
        if len(found) == count:
            break
        if usable(position):
            found.append(position)
    return found


def _join(train: Split, val: Split, source: str) -> Split:
    """The images of both pools as one."""
    images: Images
    match train.images, val.images:
        case ImageFiles() as first, ImageFiles() as second if first.root == second.root:
            images = ImageFiles(first.root, first.paths + second.paths)
        case PixelRows() as rows, PixelRows() as others:
            images = PixelRows(torch.cat([rows.pixels, others.pixels]))
        case FeatureRows() as rows, FeatureRows() as others:
            images = FeatureRows(torch.cat([rows.features, others.features]), rows.source)
        case _:
            raise DataError(
                f"Training and validation images must be below one folder to be joined, and those "
                f"of '{source}' are not. Use --draws seeded-capped."
            )
    digest = fingerprint(train.fingerprint.encode(), val.fingerprint.encode())
    return Split(images, torch.cat([train.labels, val.labels]), digest)


def _by_name(pool: Split, shots: int, seed: int, usable: Readable) -> Drawn:
    """`sample_shots`, whatever the order in which the pool lists its images."""
    order = sorted(range(len(pool.images)), key=pool.images.name)
    labels = pool.labels[torch.tensor(order, dtype=torch.int64)]
    drawn = sample_shots(labels, shots, seed, pool.fingerprint, lambda row: usable(order[row]))
    return {label: [order[row] for row in rows] for label, rows in drawn.items()}


def _check_sizes(
    dataset: Dataset,
    drawn: Mapping[SplitName, Drawn],
    wanted: Mapping[SplitName, int],
    capped: bool,
    faults: Sequence[str],
) -> None:
    """Raise one `DataError` that names the largest number of shots that works for all classes."""
    limits: dict[int, tuple[int, SplitName]] = {}
    for label in range(len(dataset.class_names)):
        found = [(len(drawn[name].get(label, ())), name) for name in wanted]
        short = [(count, name) for count, name in found if count < (1 if capped else wanted[name])]
        if short:
            limits[label] = min(short)
    if not limits:
        return
    label = min(limits, key=lambda each: limits[each])
    largest, split = limits[label]
    what = "readable images" if faults else "images"
    where = f"class {label} ('{dataset.class_names[label]}') of '{dataset.name}'"
    fault = f" The first unreadable image: {faults[0]}" if faults else ""
    if not largest:
        raise DataError(
            f"Every class needs {what} in each split, {where} has none in {split}: add some, or "
            f"remove the class.{fault}"
        )
    raise DataError(
        f"Every class needs as many {what} as there are shots, and in val as many up to "
        f"{VAL_SHOTS}: {where} has {largest} in {split}, shots is {wanted['train']}. Use --shots "
        f"{largest}, --shots all for every labelled image, or --draws seeded-capped for all images "
        f"of smaller classes.{fault}"
    )


def _unknown(draws: str) -> str:
    return (
        "A rule of drawing must be 'seeded', 'seeded-capped', 'joined', 'coop' or 'file:PATTERN', "
        f"got '{draws}': use one of these."
    )
