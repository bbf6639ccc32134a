"""Checks of a task's data before a sweep starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from search.core.config import SweepConfig
from search.core.task import (
    FreshDraws,
    data_problems,
    effective_images,
    fresh_draws,
    fresh_seeds,
    same_training_sets,
    task_fingerprints,
    task_notices,
    val_images,
)
from tests.trainables.data.bundles import tensors, write_bundle
from tests.trainables.data.trees import dtd, imagenet_a, paint
from tests.trainables.trials import residual_trial
from trainables.core.protocols import Protocol
from trainables.fixed import training_key
from trainables.presets import task_facts
from trainables.trial import TaskSpec


def problems(
    spec: str, root: Path, protocol: Protocol = "few-shot", skip_unreadable: bool = False
) -> list[str]:
    task = TaskSpec((spec,), "tiny", (1,), (1,), protocol, skip_unreadable=skip_unreadable)
    return data_problems(SweepConfig(task=task), task.source(str(root)))


def test_an_absent_test_image_is_told_before_the_search(tmp_path: Path) -> None:
    tree = dtd(tmp_path)
    assert problems("dtd", tmp_path) == []
    absent = tree.folder / "images" / tree.rows["test"][0][0]
    absent.unlink()
    (problem,) = problems("dtd", tmp_path)
    assert f"'{absent}' is not (it is missing)" in problem
    assert "--skip-unreadable" in problem
    assert problems("dtd", tmp_path, skip_unreadable=True) == []


def test_wrong_texts_do_not_hide_too_few_images() -> None:
    wrong = {"class_names": ("zero",), "prompt": ("a {digit}",)}
    for name, value in wrong.items():
        task = TaskSpec(("digits",), "tiny", (500,), (1,), **{name: value})  # type: ignore[arg-type]
        texts, images = data_problems(SweepConfig(task=task), task.source(""))
        assert name.replace("_", "-") in texts
        assert "shots is 500" in images


def test_a_half_of_the_classes_without_test_images(tmp_path: Path) -> None:
    for part, classes in (("train", "abcd"), ("val", "abcd"), ("test", "ab")):
        for label, name in enumerate(classes):
            paint(tmp_path / part / name / "1.jpg", label)
    spec = f"folder:{tmp_path}"
    assert problems(spec, tmp_path) == []
    (problem,) = problems(spec, tmp_path, "base-to-new")
    assert f"the new classes of '{spec}' have none" in problem


def test_test_rows_of_a_bundle_that_are_unfit(tmp_path: Path) -> None:
    found = tensors()
    found["test_labels"][0] = -1
    spec = f"bundle:{write_bundle(tmp_path / 'b.safetensors', found)}"
    task = TaskSpec((spec,), spec, (1,), (1,))
    (problem,) = data_problems(SweepConfig(task=task), task.source(""))
    assert "got -1 in row 0 of test_labels" in problem


def bundle(tmp_path: Path, train: int, val: int = 24) -> str:
    """A bundle of three classes with `train` training rows; a row's class is its place modulo 3."""
    found = tensors()
    found |= {f"train_{what}": found[f"train_{what}"][:train] for what in ("features", "labels")}
    found |= {f"val_{what}": found[f"val_{what}"][:val] for what in ("features", "labels")}
    return f"bundle:{write_bundle(tmp_path / f'{train}-{val}.safetensors', found)}"


def test_draws_are_distinct_by_their_training_images(tmp_path: Path) -> None:
    """Validation images, of which there may be others, make no other model."""
    for val in (12, 24):
        spec = bundle(tmp_path, 12, val)
        some, all_there_are = (TaskSpec((spec,), spec, (shots,), (1, 2)) for shots in (1, 4))
        assert fresh_draws(some, some.source(""), 3).seeds == (3, 4, 5)
        assert fresh_draws(all_there_are, some.source(""), 3) == FreshDraws((3,), 3, 1)
        first = same_training_sets(all_there_are, some.source(""))
        assert {episode.seed for episode in first.values()} == {1}
        notice = task_notices(all_there_are, some.source(""))[-1]
        assert notice.startswith("Seeds 1, 2 give 1 distinct set of training images, not 2")
        assert not any("distinct" in notice for notice in task_notices(some, some.source("")))


def test_draws_that_repeat_by_chance_are_found(tmp_path: Path) -> None:
    """Two images per class and one shot: eight sets of training images, whatever their order."""
    spec = bundle(tmp_path, 6)
    task = TaskSpec((spec,), spec, (1,), (1,))
    found = fresh_draws(task, task.source(""), 200)
    assert found.requested == 200
    assert len(found.seeds) == 8
    assert found.seeds == tuple(sorted(found.seeds))
    assert found.seen == 1


def test_a_validation_image_counts_once(tmp_path: Path) -> None:
    spec = bundle(tmp_path, 30, 9)
    one, three = (TaskSpec((spec,), spec, (3,), seeds) for seeds in ((1,), (1, 2, 3)))
    assert val_images(one, one.source("")) == 9
    assert val_images(three, three.source("")) == 9


def test_a_class_of_one_training_image_cannot_be_folded(tmp_path: Path) -> None:
    for label, count in enumerate((8, 3)):  # half of them for training
        for place in range(count):
            paint(tmp_path / "ab"[label] / f"{place}.png", place + 10 * label)
    spec = f"folder:{tmp_path}"
    task = TaskSpec((spec,), "tiny", (4,), (1,), draws="seeded-capped", validation="folds")
    (problem,) = data_problems(SweepConfig(task=task), task.source(""))
    assert "at least 2 training images in every class, class 1 ('b')" in problem
    held_out = replace(task, validation="held-out")
    assert data_problems(SweepConfig(task=held_out), task.source("")) == []


def test_texts_of_a_table_are_part_of_its_identity(tmp_path: Path) -> None:
    """A sweep is not resumed with other texts, and no training with them is reused."""
    table = tmp_path / "birds.csv"
    for label in range(2):
        for place in range(8):
            paint(tmp_path / f"{label}-{place}.png", label)

    def identity(names: str, words: str) -> tuple[str, str]:
        rows = [f"{n}-{p}.png,{names[n]},{words} {names[n]}" for n in range(2) for p in range(8)]
        table.write_text("\n".join(["path,label,prompt", *rows]))
        task = TaskSpec((f"folder:{table}",), "tiny", (1,), (1,))
        source = task.source("")
        (episode,) = task.episodes
        key = training_key(residual_trial(1), episode, source, "backbone")
        return json.dumps(task_fingerprints(task, source)), key

    first = identity("ab", "a photo of")
    assert identity("ab", "a photo of") == first
    for other in (identity("ab", "a drawing of"), identity("ac", "a photo of")):
        assert not set(other) & set(first)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_a_mean_over_data_sets_is_at_most_as_certain_as_all_their_images(
    counts: list[int],
) -> None:
    found = effective_images(counts)
    assert len(counts) * min(counts) <= found <= sum(counts)
    assert effective_images([counts[0]] * 3) == 3 * counts[0]


@given(st.lists(st.integers(0, 1000), min_size=1, unique=True), st.integers(1, 20))
def test_fresh_seeds_are_new_and_follow(used: list[int], count: int) -> None:
    found = fresh_seeds(used, count)
    assert len(found) == count
    assert not set(found) & set(used)
    assert found[0] == max(used) + 1
    assert list(found) == sorted(found)


def test_names_of_data_sets_that_are_no_text(tmp_path: Path) -> None:
    """A path given on the command line may have bytes that are no text; files cannot have them."""
    (problem,) = problems("folder:caf\udce9", tmp_path)
    assert problem == ("--dataset must be valid Unicode text, got 'folder:caf\\udce9': rename it.")


def test_other_counts_than_the_published_ones_are_told_of_what_judges_too(tmp_path: Path) -> None:
    dtd(tmp_path)
    imagenet_a(tmp_path)
    task = TaskSpec(("dtd", "imagenet_a"), "tiny", (1,), (1,), "cross-dataset")
    found = task_notices(task, task.source(str(tmp_path)))
    assert [notice.split(" has ")[0] for notice in found] == ["'dtd'", "'imagenet_a'"]
    assert "Figures from other counts cannot be compared with published ones" in found[0]


def test_facts_of_a_task_and_of_its_parts() -> None:
    task = TaskSpec(("digits", "digits-rotated"), "tiny", (1, 4), (1, 2), "base-to-new")
    facts = task_facts(task, task.source(""), "vit")
    assert (facts.dataset, facts.shots, facts.images, facts.protocol) == ("", 4, 20, "base-to-new")
    found = [(one.dataset, one.shots, one.images, one.protocol) for one in facts.each]
    assert found == [
        (name, shots, 5 * shots, "base-to-new") for name in task.datasets for shots in (1, 4)
    ]
    alone = TaskSpec(("digits",), "tiny", (4,), (1, 2))
    assert task_facts(alone, alone.source(""), "vit").each == ()
    shots = TaskSpec(("digits",), "tiny", (1, 16), (1,))
    facts = task_facts(shots, shots.source(""), "vit")
    assert (facts.dataset, facts.shots, len(facts.each)) == ("digits", 16, 2)


def test_the_papers_setting_knows_the_protocol() -> None:
    for protocol, leak in (("few-shot", 0.3), ("base-to-new", 1.0)):
        task = TaskSpec(("digits",), "tiny", (16,), (1,), protocol)
        config = SweepConfig(task=task)
        facts = task_facts(task, task.source(""), "vit")
        assert config.open_space(facts).first_parameters["leak"] == leak
