"""The task of a sweep: its facts, its data checks, and the test splits that evaluate its models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from search.core.config import SweepConfig
from search.core.dataset_problems import is_bundle
from trainables.core.protocols import Part, Protocol
from trainables.data.base import DataError, Dataset, FeatureRows, PixelRows, fingerprint, image_keys
from trainables.data.class_subsets import Half
from trainables.data.few_shot import FewShot, draws_problems
from trainables.data.prompts import PromptVariant
from trainables.data.registry import SHIFTS, DataSource
from trainables.data.sealed import check_test_split
from trainables.trial import Episode, TaskSpec


@dataclass(frozen=True)
class EvaluationSet:
    """One test split and the models that it evaluates."""

    target: str
    """The data set whose test split is read."""
    sources: tuple[str, ...]
    """The data sets whose models are evaluated."""
    halves: tuple[Half, ...] = ("all",)
    """The classes among which images are classified; one score each."""
    shift: bool = False
    """Whether its classes are a subset of the source's, so that the source's classifier is used."""

    def part(self, half: Half) -> Part:
        """Which test images the score of `half` is about."""
        if half != "all":
            return half
        if self.shift:
            return "shift"
        return "test" if self.target in self.sources else "target"


def evaluation_sets(task: TaskSpec) -> tuple[EvaluationSet, ...]:
    """All test splits that the evaluation reads; raises `DataError` if the protocol has none."""
    match task.protocol:
        case "few-shot":
            return tuple(EvaluationSet(name, (name,)) for name in task.datasets)
        case "base-to-new":
            return tuple(EvaluationSet(name, (name,), ("base", "new")) for name in task.datasets)
        case "domain-generalization":
            source = task.datasets[0]
            return (
                EvaluationSet(source, (source,)),
                *(EvaluationSet(name, (source,), shift=True) for name in _shifts(task)),
            )
        case "cross-dataset":
            return tuple(EvaluationSet(name, task.sources) for name in task.datasets)


def _shifts(task: TaskSpec) -> tuple[str, ...]:
    """The shifts that the task names, or all of its source."""
    source, named = task.datasets[0], task.datasets[1:]
    known = SHIFTS.get(source, ())
    if not known:
        raise DataError(
            f"--protocol domain-generalization needs a data set that has shifts, got '{source}': "
            f"use one of {', '.join(SHIFTS)}, or --protocol cross-dataset."
        )
    if others := [name for name in named if name not in known]:
        raise DataError(
            f"The shifts of {source} are {', '.join(known)}, got '{others[0]}': name one of them, "
            "or none to use all."
        )
    return named or known


def data_problems(config: SweepConfig, source: DataSource) -> list[str]:
    """Everything that can be wrong with the data before an image is decoded: missing files, too few
    images, a mismatch with the protocol. Includes the test images, which are read later."""
    task = config.task
    found: list[str] = []
    if task.protocol not in get_args(Protocol) or not task.datasets:
        return []
    if broken := [name for name in task.datasets if not _is_text(name)]:
        return [f"--dataset must be valid Unicode text, got {broken[0]!a}: rename it."]
    try:
        sets = evaluation_sets(task)
    except DataError as error:
        return [str(error)]
    for name in dict.fromkeys([*task.sources, *(one.target for one in sets)]):
        try:
            halves = {half for one in sets if one.target == name for half in one.halves}
            for half in sorted(halves):
                source.dataset(name, half)
        except DataError as error:
            found.append(str(error))
    if (task.class_names or task.prompt) and any(map(is_bundle, task.datasets)):
        found.append(
            "--class-names and --prompt need the data set's images, and a bundle holds features of "
            "images and texts. Omit them, or make the bundle with these texts."
        )
    if task.class_names and len(task.datasets) > 1:
        found.append(
            "--class-names must be used with one data set, got --dataset "
            f"{','.join(task.datasets)}. Name one."
        )
    if found and (task.class_names or task.prompt):  # the draws do not depend on the texts
        plain = replace(config, task=replace(task, class_names=(), prompt=()))
        found += data_problems(plain, plain.task.source(config.data))
    if found or config.task_problems():
        return list(dict.fromkeys(found))
    seeds = (*task.seeds, *fresh_seeds(task.seeds, config.eval_seeds))
    if found := draws_problems(task.draws, task.sources, task.shots, seeds):
        return found
    for name in task.sources:
        for shots in task.shots:
            try:
                for seed in seeds:
                    drawn = source.draw(name, shots, seed, task.half)
                    if seed == seeds[0]:  # missing files are looked for once
                        drawn.train.images.content()
                        drawn.val.images.content()
                        found += _folds_problems(task, source.dataset(name, task.half), drawn)
            except DataError as error:
                found.append(str(error))
    for one in sets:
        for half in one.halves:
            try:
                dataset = source.dataset(one.target, half)
                check_test_split(dataset, task.skip_unreadable)
            except DataError as error:
                found.append(str(error))
    return list(dict.fromkeys(found))


def _folds_problems(task: TaskSpec, dataset: Dataset, drawn: FewShot) -> list[str]:
    """A class of one image has none to be trained on while that one is validated."""
    counts = drawn.train.labels.bincount().tolist()
    if task.validation != "folds" or min(counts) > 1:
        return []
    label = counts.index(min(counts))
    return [
        f"--validation folds needs at least 2 training images in every class, class {label} "
        f"('{dataset.class_names[label]}') of '{dataset.name}' has {counts[label]}. Add some, or "
        "use --validation held-out."
    ]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def all_class_names(task: TaskSpec, source: DataSource, variant: PromptVariant) -> tuple[str, ...]:
    """The distinct class names, as prompts use them, of every data set that is trained or evaluated
    on; raises `DataError`."""
    names = (
        name
        for spec in _all_datasets(task)
        for name in source.dataset(spec).prompts(variant).class_names
    )
    return tuple(dict.fromkeys(names))


def _all_datasets(task: TaskSpec) -> Iterable[str]:
    return dict.fromkeys([*task.sources, *(one.target for one in evaluation_sets(task))])


def reads_files(task: TaskSpec, source: DataSource) -> bool:
    """Whether there are image files to decode."""
    pools = (source.dataset(name).split("train").images for name in task.sources)
    return any(not isinstance(images, FeatureRows | PixelRows) for images in pools)


def task_fingerprints(task: TaskSpec, source: DataSource) -> dict[str, str]:
    """Digests of the pools that few-shot sets are drawn from, of the draws, and of the class names
    and prompts that a file of the user's contains beside the images."""
    found = {}
    for name in task.sources:
        suffix = f".{name}" if len(task.sources) > 1 else ""
        dataset = source.dataset(name)
        found[f"train{suffix}"] = dataset.split("train").fingerprint
        found[f"val{suffix}"] = dataset.split("val").fingerprint
        if name.startswith("folder:"):
            texts = json.dumps([dataset.class_names, dataset.prompts("single").given])
            found[f"texts{suffix}"] = fingerprint(texts.encode())
    drawn = [_draw(source, episode) for episode in task.episodes]
    parts = [(pair.train.fingerprint + pair.val.fingerprint).encode() for pair in drawn]
    return found | {"draws": fingerprint(*parts)}


# --- draws ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FreshDraws:
    """The draws on which the winner is trained again for the evaluation."""

    seeds: tuple[int, ...]
    """One seed per distinct draw: no two of them train on the same images."""
    requested: int
    """How many seeds were requested (`--eval-seeds`)."""
    seen: int
    """How many of the draws have the training images of one of the search's draws."""


def fresh_seeds(used: Sequence[int], count: int) -> tuple[int, ...]:
    """The next `count` seeds after those that the search uses."""
    return tuple(range(max(used) + 1, max(used) + 1 + count))


def fresh_draws(task: TaskSpec, source: DataSource, count: int) -> FreshDraws:
    """The draws of the next `count` seeds, without those that repeat an earlier one of them.

    Two draws are the same if their training images are, in every episode. A draw that takes every
    image there is (a bundle with all its shots) is the same for every seed.
    """
    seeds = fresh_seeds(task.seeds, count)
    distinct: dict[frozenset[tuple[Episode, str]], int] = {}
    for seed in seeds:
        distinct.setdefault(_training_sets(task, source, seed), seed)
    search = {_training_sets(task, source, seed) for seed in task.seeds}
    return FreshDraws(tuple(distinct.values()), count, len(search & distinct.keys()))


def same_training_sets(task: TaskSpec, source: DataSource) -> dict[Episode, Episode]:
    """For each episode the first one of its data set and shots with the same training images."""
    first: dict[tuple[Episode, str], Episode] = {}
    return {
        episode: first.setdefault(_training_set(source, episode), episode)
        for episode in task.episodes
    }


def _training_sets(task: TaskSpec, source: DataSource, seed: int) -> frozenset[tuple[Episode, str]]:
    episodes = replace(task, seeds=(seed,)).episodes
    return frozenset(_training_set(source, episode) for episode in episodes)


def _training_set(source: DataSource, episode: Episode) -> tuple[Episode, str]:
    """What is trained on: data set and shots, and a digest of the images in any order."""
    keys = sorted(image_keys(_draw(source, episode).train))
    return replace(episode, seed=0), fingerprint(
        *(key.encode("utf-8", "surrogatepass") for key in keys)
    )


def task_notices(task: TaskSpec, source: DataSource) -> list[str]:
    """The caveats of all data, evaluation sets included, and of the draws."""
    found = [caveat for name in _all_datasets(task) for caveat in source.dataset(name).caveats]
    for name in task.sources:
        for shots in task.shots:
            found += source.caveats(name, shots, task.seeds[0])
    if len(task.seeds) > 1:
        draws = {_training_sets(task, source, seed) for seed in task.seeds}
        if len(draws) < len(task.seeds):
            seeds = ", ".join(map(str, task.seeds))
            found.append(
                f"Seeds {seeds} give {len(draws)} distinct "
                f"{'set' if len(draws) == 1 else 'sets'} of training images, not "
                f"{len(task.seeds)}: there are too few images to draw others."
            )
    return list(dict.fromkeys(found))


def val_images(task: TaskSpec, source: DataSource) -> int:
    """The number of distinct validation images behind a trial's objective.

    An image that several draws contain counts once. For several data sets, see `effective_images`.
    """
    distinct: dict[str, set[str]] = {}
    for episode, keys in zip(task.episodes, validated_images(task, source), strict=True):
        distinct.setdefault(episode.dataset, set()).update(keys)
    return effective_images([len(keys) for keys in distinct.values()])


def validated_images(task: TaskSpec, source: DataSource) -> list[set[str]]:
    """The keys of the images that the models of each episode are validated on, see `Validation`."""
    labelled: dict[tuple[str, int], set[str]] = {}
    found: list[tuple[Episode, set[str], set[str]]] = []
    for episode in task.episodes:
        drawn = _draw(source, episode)
        train, val = set(image_keys(drawn.train)), set(image_keys(drawn.val))
        labelled.setdefault((episode.dataset, episode.shots), set()).update(train, val)
        found.append((episode, train, val))
    match task.validation:
        case "pooled":
            return [labelled[e.dataset, e.shots] - train for e, train, _ in found]
        case "folds":
            return [train for _, train, _ in found]
        case "held-out":
            return [val for _, _, val in found]


def effective_images(counts: Sequence[int]) -> int:
    """The number of images with which a plain accuracy would be as certain as a mean over m data
    sets: m^2 / sum(1 / n_i).

    Equals the sum if all data sets have the same number of images; a small data set, which weighs
    as much as a large one, costs certainty. `counts`: at least 1 each.
    """
    return int(len(counts) ** 2 / sum(1 / count for count in counts) + 1e-9)


def _draw(source: DataSource, episode: Episode) -> FewShot:
    return source.draw(episode.dataset, episode.shots, episode.seed, episode.half)


# --- words ---------------------------------------------------------------------------------------
