"""The classes of the user's own folders: images, texts, and what a sweep does with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from search.core.task import validated_images
from trainables.data.base import image_keys
from trainables.data.few_shot import VAL_SHOTS
from trainables.data.lists import ListedDataset
from trainables.data.registry import DataSource, open_dataset
from trainables.trial import TaskSpec, TrialConfig

_MOST_CLASSES = 20  # rows of a table

Columns = Mapping[str, Sequence[int]]
"""Heading -> a number per class."""


def folder_table(spec: str) -> Table | None:
    """Return the images per class of a `folder:` data set, with the numbers of shots that work;
    None for any other. Raises `DataError`."""
    dataset = open_dataset(spec) if spec.startswith("folder:") else None
    if not isinstance(dataset, ListedDataset):
        return None
    counts = dataset.class_counts()
    pairs = zip(counts["train"], counts["val"], strict=True)
    shots = min(train if val >= VAL_SHOTS else min(train, val) for train, val in pairs)
    table = _table(spec, dataset.class_names, counts)
    table.caption = (
        f"--shots can be up to {shots}; --shots all trains on {sum(counts['train']):,} images, "
        f"with --validation folds on {sum(counts['train']) + sum(counts['val']):,}."
    )
    return table


def task_tables(task: TaskSpec, source: DataSource) -> list[Table]:
    """Return, for each `folder:` data set of the task, the images per class and how many of them
    a trial trains on and validates with, with the most shots. Raises `DataError`."""
    found = []
    for spec in task.sources:
        dataset = open_dataset(spec) if spec.startswith("folder:") else None
        if isinstance(dataset, ListedDataset):
            counts = dataset.class_counts()
            uses = _uses(task, source, spec, len(dataset.class_names))
            names = source.dataset(spec).class_names
            table = _table(spec, names, {**counts, **uses})
            if any(uses["not used"]):
                table.caption = "Not used: labelled images that no draw contains (see --shots all)."
            found.append(table)
    return found


def texts_of_classes(task: TaskSpec, source: DataSource, first: TrialConfig) -> list[str]:
    """Return, for each `folder:` data set of the task, a sentence with the texts that describe one
    of its classes in the first trial. Raises `DataError`."""
    variant = first.stages[0].method_config.prompts
    found = []
    for spec in task.sources:
        if spec.startswith("folder:"):
            prompts = source.dataset(spec).prompts(variant)
            texts = ", ".join(f'"{text}"' for text in prompts.texts()[0])
            found.append(
                f"The class '{prompts.class_names[0]}' is described by {texts}, and the others "
                "likewise. To change this, use --class-names and --prompt."
            )
    return found


def _uses(task: TaskSpec, source: DataSource, spec: str, classes: int) -> Columns:
    shots, trained, validated = max(task.shots), set[str](), set[str]()
    first = source.draw(spec, shots, task.seeds[0], task.half)
    for episode, keys in zip(task.episodes, validated_images(task, source), strict=True):
        if (episode.dataset, episode.shots) == (spec, shots):
            drawn = source.draw(spec, shots, episode.seed, episode.half)
            trained.update(image_keys(drawn.train))
            validated.update(keys)
    dataset = source.dataset(spec)
    labelled = {*image_keys(dataset.split("train")), *image_keys(dataset.split("val"))}
    return {
        "trained on": _by_class(image_keys(first.train), classes),
        "validated with": _by_class(validated, classes),
        "not used": _by_class(labelled - trained - validated, classes),
    }


def _by_class(keys: Iterable[str], classes: int) -> list[int]:
    """How many of the images belong to each class; see `image_keys`."""
    found = Counter(int(key.partition("/")[0]) for key in keys)
    return [found[label] for label in range(classes)]


def _table(spec: str, names: Sequence[str], columns: Columns) -> Table:
    """One row per class; of many classes, those with the fewest training images."""
    shown, title = list(range(len(names))), f"Images per class in '{spec}'"
    if len(names) > _MOST_CLASSES:
        shown = sorted(sorted(shown, key=lambda label: columns["train"][label])[:_MOST_CLASSES])
        title += f" (the {_MOST_CLASSES} smallest of {len(names):,} classes)"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.caption_justify = "left"
    table.add_column("class", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right")
    for label in shown:
        table.add_row(names[label], *(f"{numbers[label]:,}" for numbers in columns.values()))
    return table
