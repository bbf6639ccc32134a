"""Which test splits a protocol reads, and which models they evaluate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.core.task import EvaluationSet, evaluation_sets
from trainables.data.base import DataError
from trainables.trial import TaskSpec

TASK = TaskSpec(("dtd", "eurosat"), "tiny", (1, 4), (1, 2))


def test_few_shot_evaluates_each_data_set_on_its_own() -> None:
    first, second = evaluation_sets(TASK)
    assert (first.target, second.target) == ("dtd", "eurosat")
    assert (first.sources, second.sources) == (("dtd",), ("eurosat",))
    assert first.part("all") == "test"


def test_base_to_new_evaluates_both_halves_with_one_read() -> None:
    task = replace(TASK, protocol="base-to-new")
    found = evaluation_sets(task)
    assert [one.target for one in found] == ["dtd", "eurosat"]
    assert [found[0].part(half) for half in found[0].halves] == ["base", "new"]
    assert {episode.half for episode in task.episodes} == {"base"}


def test_domain_generalization_takes_all_shifts_or_those_named() -> None:
    task = replace(TASK, datasets=("imagenet",), protocol="domain-generalization")
    names = ["imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert [one.target for one in evaluation_sets(task)] == names
    assert [one.part("all") for one in evaluation_sets(task)] == ["test", *["shift"] * 4]
    some = replace(task, datasets=("imagenet", "imagenet_r"))
    assert [one.target for one in evaluation_sets(some)] == ["imagenet", "imagenet_r"]
    assert {episode.dataset for episode in some.episodes} == {"imagenet"}
    with pytest.raises(DataError, match="needs a data set that has shifts, got 'dtd'"):
        evaluation_sets(replace(task, datasets=("dtd",)))
    with pytest.raises(DataError, match=r"The shifts of imagenet are .*, got 'dtd'"):
        evaluation_sets(replace(task, datasets=("imagenet", "dtd")))


def test_cross_dataset_trains_on_the_first_alone() -> None:
    task = replace(TASK, protocol="cross-dataset")
    assert evaluation_sets(task) == (
        EvaluationSet("dtd", ("dtd",)),
        EvaluationSet("eurosat", ("dtd",)),
    )
    assert [one.part("all") for one in evaluation_sets(task)] == ["test", "target"]
    assert {episode.dataset for episode in task.episodes} == {"dtd"}
