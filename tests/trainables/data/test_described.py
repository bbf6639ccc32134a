"""A user's own class names and prompts: in every text, in the identity, with one error each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search.core.sweep_file import sweep_text
from search.core.task import data_problems
from search.options import configure
from trainables.data.base import DataError
from trainables.data.prompts import PHOTO
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.fixed import training_key
from trainables.methods.base import TaskFacts
from trainables.presets import preset_trial
from trainables.trial import Episode

NAMES = tuple(f"the number {n}" for n in range(10))
PROMPTS = ("a scan of {}.", "{}, in ink")


def test_texts_have_the_users_names_and_templates() -> None:
    dataset = DataSource(class_names=NAMES, prompts=PROMPTS).dataset("digits")
    assert dataset.class_names == NAMES
    assert dataset.prompts("paper").texts()[3] == [
        "a scan of the number 3.",
        "the number 3, in ink",
    ]
    assert dataset.prompts("clean").normalise_each
    own = DataSource(prompts=PROMPTS[:1]).dataset("digits")
    assert own.prompts("paper").texts()[0] == ["a scan of zero."]
    named = DataSource(class_names=NAMES).dataset("digits")
    assert named.prompts("photo").templates == (PHOTO,)
    new = DataSource(class_names=NAMES, prompts=PROMPTS).dataset("digits", "new")
    assert new.prompts("paper").texts()[0][0] == "a scan of the number 5."
    plain = DataSource()
    assert plain.dataset("digits").class_names != NAMES
    assert dataset.split("train").fingerprint == plain.dataset("digits").split("train").fingerprint


def test_they_reach_the_model_and_the_key_of_a_training() -> None:
    plain, own = DataSource(), DataSource(prompts=PROMPTS)
    first, second = (
        EncodedTask("tiny", "cpu", source).class_features("digits", "all", "paper")
        for source in (plain, own)
    )
    assert not torch.equal(first, second)
    config = preset_trial("taskres", "paper", TaskFacts("digits", 1, 10))
    keys = {training_key(config, Episode("digits", 1, 1), s, "b") for s in (plain, own)}
    assert len(keys) == 2


def test_the_options(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(NAMES) + "\n")
    options = ["--class-names", str(file), *(f"--prompt={prompt}" for prompt in PROMPTS)]
    config = configure(options)
    assert config.task.class_names == NAMES
    assert config.task.prompt == PROMPTS
    assert data_problems(config, config.task.source("")) == []
    assert config.identity() != configure([]).identity()
    assert "prompt" not in configure([]).task.to_dict()
    (tmp_path / "sweep.yaml").write_text(sweep_text(config))
    assert configure([str(tmp_path / "sweep.yaml")]) == config


@pytest.mark.parametrize(
    ("names", "prompts", "told"),
    [
        (NAMES[:3], (), "one name per class of 'digits', in this order: zero, one, two, "),
        (("", *NAMES[1:]), (), "class 0 of --class-names, is empty"),
        ((), ("a photo",), "must have {} once, for the class name"),
        ((), ("{} and {}",), "must have {} once"),
        ((), ("{0} {}",), "no other braces, got '{0} {}'"),
    ],
)
def test_mistakes(names: tuple[str, ...], prompts: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError) as caught:
        DataSource(class_names=names, prompts=prompts).dataset("digits")
    assert told in str(caught.value)


def test_one_data_set_has_these_names() -> None:
    config = configure(["--dataset", "digits,digits-rotated"])
    config = replace(config, task=replace(config.task, class_names=NAMES))
    (found,) = data_problems(config, config.task.source(""))
    assert "--class-names must be used with one data set" in found
