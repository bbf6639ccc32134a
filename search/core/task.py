"""A sweep's task, opened: is its data there, and what are its facts?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import get_args

from search.core.config import SweepConfig
from search.evaluation.evaluation_sets import evaluation_sets
from search.evaluation.seeds import fresh_seeds
from search.evaluation.statistics import effective_images
from trainables.data.base import DataError, FeatureRows, PixelRows, fingerprint
from trainables.data.few_shot import FewShot, draws_problems
from trainables.data.prompts import PromptVariant
from trainables.data.registry import DataSource
from trainables.data.sealed import check_test_split
from trainables.methods.base import TaskFacts, Tower
from trainables.protocols import Protocol
from trainables.trial import Episode, TaskSpec


def data_problems(config: SweepConfig, source: DataSource) -> list[str]:
    """Everything about the data that can be wrong before an image is decoded: what is missing, too
    small, or does not fit the protocol; of the test images too, which are read after the search."""
    task = config.task
    found: list[str] = []
    if task.protocol not in get_args(Protocol) or not task.datasets:
        return []
    try:
        judged = evaluation_sets(task)
    except DataError as error:
        return [str(error)]
    for name in dict.fromkeys([*task.sources, *(exam.target for exam in judged)]):
        try:
            halves = {half for exam in judged if exam.target == name for half in exam.halves}
            for half in sorted(halves):
                source.dataset(name, half)
        except DataError as error:
            found.append(str(error))
    if found or config.task_problems():
        return found
    seeds = (*task.seeds, *fresh_seeds(task.seeds, config.eval_seeds))
    if found := draws_problems(task.draws, task.sources, task.shots, seeds):
        return found
    for name in task.sources:
        for shots in task.shots:
            try:
                for seed in seeds:
                    drawn = source.draw(name, shots, seed, task.half)
                    if seed == seeds[0]:  # which files are there is asked once
                        drawn.train.images.content()
                        drawn.val.images.content()
            except DataError as error:
                found.append(str(error))
    for exam in judged:
        for half in exam.halves:
            try:
                dataset = source.dataset(exam.target, half)
                check_test_split(dataset, all_there=not task.skip_unreadable)
            except DataError as error:
                found.append(str(error))
    return list(dict.fromkeys(found))


def task_facts(
    task: TaskSpec, source: DataSource, tower: Tower, episode: Episode | None = None
) -> TaskFacts:
    """The facts about one episode, or about the whole task.

    For several data sets or numbers of shots, those of the task describe a general setting: the
    largest number of shots, and no data set's name if there are several. They contain the facts of
    each data set and number of shots.
    """
    if episode is None:
        first = replace(task, seeds=task.seeds[:1]).episodes
        each = tuple(task_facts(task, source, tower, one) for one in first)
        general = max(each, key=lambda facts: facts.shots)
        name = "" if len(task.sources) > 1 else general.dataset
        return replace(general, dataset=name, each=each if len(each) > 1 else ())
    images = _draw(source, episode).train.images
    pixels = not isinstance(images, FeatureRows)
    return TaskFacts(episode.dataset, episode.shots, len(images), tower, pixels, task.protocol)


def all_class_names(task: TaskSpec, source: DataSource, variant: PromptVariant) -> tuple[str, ...]:
    """Of every data set that is trained or judged on, as they stand in texts, each once; raises
    `DataError`."""
    specs = dict.fromkeys([*task.sources, *(exam.target for exam in evaluation_sets(task))])
    names = (name for spec in specs for name in source.dataset(spec).prompts(variant).class_names)
    return tuple(dict.fromkeys(names))


def reads_files(task: TaskSpec, source: DataSource) -> bool:
    """Whether there are image files to decode."""
    pools = (source.dataset(name).split("train").images for name in task.sources)
    return any(not isinstance(images, FeatureRows | PixelRows) for images in pools)


def task_fingerprints(task: TaskSpec, source: DataSource) -> dict[str, str]:
    """Of the pools that few-shot sets are drawn from, and of what is drawn."""
    found = {}
    for name in task.sources:
        suffix = f".{name}" if len(task.sources) > 1 else ""
        dataset = source.dataset(name)
        found[f"train{suffix}"] = dataset.split("train").fingerprint
        found[f"val{suffix}"] = dataset.split("val").fingerprint
    drawn = [_draw(source, episode) for episode in task.episodes]
    parts = [(pair.train.fingerprint + pair.val.fingerprint).encode() for pair in drawn]
    return found | {"draws": fingerprint(*parts)}


def fresh_draws(task: TaskSpec, source: DataSource, count: int) -> tuple[int, ...]:
    """Seeds of the draws that judge the winner: the next `count`, or one where a draw takes all
    images that there are. Said to be several, it would have no deviation, and differences an
    interval of no width."""
    seeds = fresh_seeds(task.seeds, count)
    for episode in replace(task, seeds=seeds[:1]).episodes:
        dataset, drawn = source.dataset(episode.dataset, episode.half), _draw(source, episode)
        if len(drawn.train.labels) < len(dataset.split("train").labels):
            return seeds
        if len(drawn.val.labels) < len(dataset.split("val").labels):
            return seeds
    return seeds[:1]


def task_notices(task: TaskSpec, source: DataSource) -> list[str]:
    """Return the caveats of all data, evaluation sets included, and of the draws."""
    names = dict.fromkeys([*task.sources, *(exam.target for exam in evaluation_sets(task))])
    found = [caveat for name in names for caveat in source.dataset(name).caveats]
    for name in task.sources:
        for shots in task.shots:
            found += source.caveats(name, shots, task.seeds[0])
    return list(dict.fromkeys(found))


def val_images(task: TaskSpec, source: DataSource) -> int:
    """How many validation images a trial is judged by, see `statistics.effective_images`."""
    return effective_images([len(_draw(source, episode).val.labels) for episode in task.episodes])


def _draw(source: DataSource, episode: Episode) -> FewShot:
    return source.draw(episode.dataset, episode.shots, episode.seed, episode.half)


def described(task: TaskSpec) -> str:
    """In a few words: what is trained on, what with, and how it is judged."""
    names = [_short(name) for name in task.sources]
    what = ", ".join(names) if len(names) <= 3 else f"{len(names)} data sets"
    shots = ", ".join(map(str, task.shots))
    backbone = "" if task.backbone in task.datasets else f", backbone {task.backbone}"
    how = "" if task.protocol == "few-shot" else f", {task.protocol}"
    return f"{what}, {shots} shots{backbone}{how}"


def _short(spec: str) -> str:
    """A path by its last part."""
    kind, colon, path = spec.partition(":")
    return f"{kind}:{PurePath(path).name}" if colon else spec
