"""What is looked for in a task's data before a sweep starts."""

from __future__ import annotations

from pathlib import Path

from search.core.config import SweepConfig
from search.core.task import data_problems, fresh_draws, task_facts, task_notices
from tests.trainables.data.bundles import tensors, write_bundle
from tests.trainables.data.trees import dtd, imagenet_a, paint
from trainables.protocols import Protocol
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


def test_one_draw_is_not_said_to_be_three(tmp_path: Path) -> None:
    found = tensors()
    found |= {f"val_{what}": found[f"val_{what}"][:12] for what in ("features", "labels")}
    spec = f"bundle:{write_bundle(tmp_path / 'b.safetensors', found)}"
    some, all_there_are = (TaskSpec((spec,), spec, (shots,), (1, 2)) for shots in (1, 4))
    assert fresh_draws(some, some.source(""), 3) == (3, 4, 5)
    assert fresh_draws(all_there_are, some.source(""), 3) == (3,)


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
        assert config.open_space(facts).paper_parameters["leak"] == leak
