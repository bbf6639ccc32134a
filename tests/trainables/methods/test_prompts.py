"""Prompt templates: where papers and code differ, and how features are merged."""

from typing import get_args

import pytest
import torch
from torch.nn import functional

from trainables.data.prompts import (
    SEVEN,
    TEMPLATES,
    PromptSet,
    PromptVariant,
    class_features,
    prompt_set,
    prompt_templates,
)
from trainables.load_backbone import load_backbone

NAMES = ("American_bulldog", "pug")


@pytest.mark.parametrize("dataset", TEMPLATES)
def test_every_template_takes_one_name(dataset: str) -> None:
    for variant in get_args(PromptVariant):
        for template in prompt_templates(dataset, variant):
            assert template.count("{}") == template.count("{") == 1
    assert len(prompt_templates(dataset, "single")) == 1
    assert prompt_templates(dataset, "photo") == ("a photo of a {}.",)


def test_class_names() -> None:
    assert prompt_set("oxford_pets", NAMES, "reference").class_names == NAMES
    assert prompt_set("oxford_pets", NAMES, "paper").class_names[0] == "American bulldog"
    assert prompt_set("oxford_pets", NAMES, "single").class_names[0] == "american bulldog"
    assert prompt_set("oxford_pets", NAMES, "clean").normalise_each


def test_where_paper_and_code_differ() -> None:
    assert prompt_templates("food101", "paper") == ("a photo of a {}, a type of food.",)
    assert prompt_templates("food101", "clean") == prompt_templates("food101", "paper")
    assert prompt_templates("food101", "reference") == ("a photo of {}, a type of food.",)
    assert prompt_templates("imagenet", "paper") == SEVEN
    assert prompt_templates("imagenet", "reference") == (*SEVEN, "a photo of a {}.")
    assert prompt_templates("imagenet_r", "single") == ("a photo of a {}.",)
    assert len(set(prompt_templates("imagenet", "reference"))) == 8


def test_repeated_calls_do_not_grow() -> None:
    first = prompt_set("imagenet", NAMES, "reference")
    assert prompt_set("imagenet", NAMES, "reference") == first


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match="prompts must be one of"):
        prompt_set("dtd", NAMES, "raw")  # type: ignore[arg-type]


def test_features_are_the_mean_over_templates() -> None:
    backbone = load_backbone("tiny")
    prompts = PromptSet(("a", "b", "c"), ("the letter {}.", "one {} in print"))
    features = class_features(backbone, prompts)
    assert features.shape == (3, 128)
    for row, texts in zip(features, prompts.texts(), strict=True):
        torch.testing.assert_close(row, backbone.encode_text(texts).mean(dim=0))
    clean = class_features(backbone, PromptSet(prompts.class_names, prompts.templates, True))
    unit = functional.normalize(backbone.encode_text(prompts.texts()[0]), dim=-1)
    torch.testing.assert_close(clean[0], unit.mean(dim=0))


def test_given_texts_replace_the_templates_word_for_word() -> None:
    given = (("A red thing.", "A_red_thing."), ("one pug",))
    for variant in get_args(PromptVariant):
        prompts = prompt_set("imagenet", NAMES, variant, given)
        assert prompts.texts() == [list(row) for row in given]
        assert prompts.normalise_each == (variant in ("clean", "ensemble"))


def test_ragged_ensembles_are_averaged_class_by_class() -> None:
    backbone = load_backbone("tiny")
    prompts = prompt_set("", ("a", "b"), "paper", (("one", "two", "three"), ("four",)))
    features = class_features(backbone, prompts)
    torch.testing.assert_close(
        features[0], backbone.encode_text(["one", "two", "three"]).mean(dim=0)
    )
    torch.testing.assert_close(features[1], backbone.encode_text(["four"])[0])


@pytest.mark.parametrize("given", [(), (("x",), ("y", "z"), ("w",))])
def test_prompts_of_some_classes(given: tuple[tuple[str, ...], ...]) -> None:
    whole = prompt_set("dtd", ("a", "b", "c"), "clean", given)
    part = whole.of_classes((2, 0))
    assert part.texts() == [whole.texts()[2], whole.texts()[0]]
    assert part.class_names == ("c", "a")
    assert part.normalise_each
