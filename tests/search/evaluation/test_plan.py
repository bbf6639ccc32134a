"""What an evaluation consists of, before anything is trained."""

from __future__ import annotations

import pytest

from search.evaluation.plan import SweepFacts, general_zero_shot
from search.options import configure
from trainables.data.prompts import SEVEN, prompt_templates


@pytest.mark.parametrize(
    ("space", "protocol", "templates"),
    [
        ("taskres", "few-shot", SEVEN),  # 60.33 with RN50; the single prompt has 58.18
        ("rmt", "few-shot", ("a photo of a {}.",)),
        ("coop", "few-shot", ("a photo of a {}.",)),
        ("coop", "base-to-new", ("a photo of a {}.",)),
        ("tip-adapter-f", "few-shot", SEVEN),
        ("rmt+tip-adapter-f", "few-shot", ("a photo of a {}.",)),
    ],
)
def test_the_zero_shot_model_has_the_prompts_that_the_method_starts_from(
    space: str, protocol: str, templates: tuple[str, ...]
) -> None:
    """On ImageNet, where they differ most."""
    config = configure(["--space", space, "--protocol", protocol])
    found = general_zero_shot(SweepFacts(config, config.task.source(""), "vit", {}))
    assert found.method == "zero-shot"
    assert prompt_templates("imagenet", found.method_config.prompts) == templates


def test_learned_prompts_are_compared_with_the_data_sets_own_template() -> None:
    """Not with «a photo of a», from which CoOp starts in base-to-new."""
    config = configure(["--space", "coop", "--protocol", "base-to-new"])
    found = general_zero_shot(SweepFacts(config, config.task.source(""), "vit", {}))
    assert found.method_config.prompts == "single"
