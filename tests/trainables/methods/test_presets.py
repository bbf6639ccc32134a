"""Presets: the papers' values for each data set, number of shots, protocol and tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from spaces.registry import SPACES
from trainables.core.protocols import Protocol
from trainables.data.prompts import SEVEN, prompt_templates
from trainables.methods.base import Preset, Recipe, TaskFacts
from trainables.methods.registry import METHODS

MASKS = ("rmt", "rmt-text", "rmt-both")
NAMED = ("paper", "reference", "clean")


def preset(method: str, name: str = "paper", **facts: Any) -> dict[str, Any]:
    given = TaskFacts("dtd", 16, 752)
    config, optim, crop_scale = METHODS[method].preset(name, replace(given, **facts))  # type: ignore[arg-type]
    return vars(config) | vars(optim) | {"crop_scale": crop_scale}


@pytest.mark.parametrize("method", MASKS)
@pytest.mark.parametrize("name", NAMED)
def test_leak(method: str, name: str) -> None:
    """0.3 only at 16 shots, only on the smaller data sets, and never in base-to-new."""
    assert preset(method, name)["leak"] == 0.3
    for other in (
        *({"shots": shots} for shots in (1, 2, 4, 8)),
        *({"dataset": dataset} for dataset in ("imagenet", "sun397", "food101")),
        {"protocol": "base-to-new"},
        {"protocol": "base-to-new", "dataset": "eurosat"},
    ):
        assert preset(method, name, **other)["leak"] == 1, other


@pytest.mark.parametrize("method", ["rmt", "rmt-both"])
def test_masked_layers(method: str) -> None:
    """AMT on a ViT, PMT on every other tower; the code also masks a ViT's first convolution."""
    for tower, masked in (("vit", "mhsa"), ("resnet", "all"), ("other", "all")):
        for name in NAMED:
            found = preset(method, name, tower=tower)
            assert (found["masked"], found["patch_embedding"]) == (masked, name == "reference")


def test_coop() -> None:
    """Base-to-new and cross-dataset transfer are CoCoOp's experiments, with its context."""
    short = (4, "a photo of a", "photo")
    for protocol in get_args(Protocol):
        found = preset("coop", protocol=protocol)
        context = found["context_tokens"], found["init_words"], found["prompts"]
        other = protocol in ("base-to-new", "cross-dataset")
        assert context == (short if other else (16, "", "single"))
    for shots, epochs in ((1, 50), (2, 100), (4, 100), (8, 200), (16, 200)):
        for method in ("coop", "prograd", "clip-adapter"):
            assert preset(method, shots=shots)["epochs"] == epochs
            assert preset(method, shots=shots, dataset="imagenet")["epochs"] == 50


def test_prograd() -> None:
    assert preset("prograd")["projection"] == 0.8
    assert preset("prograd", shots=4)["projection"] == 1
    assert preset("prograd", dataset="caltech101")["projection"] == 1
    found = preset("prograd", protocol="base-to-new")
    assert (found["projection"], found["context_tokens"]) == (1, 16)


def test_clip_adapter() -> None:
    """The recipe of the authors' code: the text's rate of 1e-5 does not leave the zero-shot
    model."""
    for name, decay, crop_scale in (("paper", 0, 1), ("reference", 5e-4, 0.08)):
        found = preset("clip-adapter", name)
        assert (found["optimiser"], found["lr"], found["batch_size"]) == ("sgd", 2e-3, 32)
        assert (found["weight_decay"], found["crop_scale"]) == (decay, crop_scale)
        assert (found["ratio"], found["reduction"], found["warmup_epochs"]) == (0.2, 4, 1)


def test_taskres() -> None:
    for name, templates in (("paper", SEVEN), ("reference", (*SEVEN, "a photo of a {}."))):
        found = preset("taskres", name, dataset="imagenet")
        assert prompt_templates("imagenet", found["prompts"]) == templates
        assert (found["lr"], found["alpha"], found["epochs"]) == (2e-4, 0.5, 200)
    assert preset("taskres", dataset="oxford_flowers")["alpha"] == 1
    assert preset("taskres", shots=4)["epochs"] == 100
    food = prompt_templates("food101", preset("taskres", dataset="food101")["prompts"])
    assert food == ("a photo of a {}, a type of food.",)


def test_tip_adapter() -> None:
    """The templates of its code, and the single one after mask tuning, as in R-AMT's tables."""
    alphas = {"caltech101": 3, "dtd": 2, "eurosat": 2, "fgvc_aircraft": 5, "oxford_flowers": 10}
    alphas |= {"stanford_cars": 3, "ucf101": 3, "imagenet": 1.17, "oxford_pets": 1.17}
    for method in ("tip-adapter", "tip-adapter-f"):
        for dataset, alpha in alphas.items():
            found = preset(method, "reference", dataset=dataset)
            assert (found["alpha"], found["beta"]) == (alpha, 1)
        for name in ("paper", "reference"):
            prompts = preset(method, name)["prompts"]
            assert prompt_templates("imagenet", prompts) == SEVEN
            assert prompt_templates("food101", prompts) == ("a photo of {}, a type of food.",)
            assert preset(method, name, after=("rmt",))["prompts"] == "single"
    assert preset("tip-adapter-f", dataset="eurosat")["epochs"] == 100
    space = SPACES["rmt+tip-adapter-f"].build(TaskFacts("imagenet", 16, 16_000))
    assert [stage.method_config.prompts for stage in space.paper.stages] == ["single", "single"]


@pytest.mark.parametrize("name", get_args(Preset))
@pytest.mark.parametrize("method", METHODS)
def test_facts_of_parts_do_not_matter(method: str, name: Preset) -> None:
    facts = TaskFacts("dtd", 16, 752)
    both = replace(facts, each=(facts, TaskFacts("imagenet", 1, 1000)))
    found: list[Recipe] = [METHODS[method].preset(name, given) for given in (facts, both)]
    assert found[0] == found[1]
