"""What an evaluation consists of, before anything is trained."""

from __future__ import annotations

import pytest

from search.evaluation.plan import SweepFacts, general_zero_shot, paper_trainings, plan_evaluation
from search.options import configure
from search.selection.record import Selection, Share
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


@pytest.mark.parametrize("space", ["taskres", "rmt", "rmt+taskres"])
def test_what_is_trained_early_is_what_the_evaluation_needs(space: str) -> None:
    """Otherwise it would be trained twice."""
    several = ("--dataset", "digits,digits-rotated", "--shots", "1,4", "--eval-seeds", "2")
    config = configure(["--space", space, *several, "--seed", "3"])
    facts = SweepFacts(config, config.task.source(""), "vit", {"backbone": "x"})
    found = plan_evaluation({}, facts, Selection(0, (Share(None, 1.0),), "best"))
    early = {candidate.training: candidate for candidate in paper_trainings(facts)}
    needed = {c.training: found.trained(c) for c in found.candidates if c.label == "paper"}
    assert early == needed
    assert len(early) == 8
