"""Every row of the papers' ablation tables that the methods can express is one command."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from search.options import configure
from trainables.fields import values_of

B16 = "--dataset imagenet --backbone ViT-B-16"
RN50 = "--dataset imagenet --backbone RN50"
MASKS = "--space rmt --trials 1"
RESIDUAL = "--space taskres --trials 1"

TASKRES = {
    # Table 2: what replaces the residual.
    f"--space text-adapter --trials 1 {RN50} --set keep_base=false": {"keep_base": False},
    f"--space text-adapter --trials 1 {RN50}": {"keep_base": True, "alpha": 0.5},
    f"{RESIDUAL} {RN50} --shots 1,2,4,8,16 --per-task": {"residual": "text"},
    # Table 4: where the residual is.
    f"{RESIDUAL} {RN50} --set residual=image": {"residual": "image"},
    f"{RESIDUAL} {RN50} --set residual=text": {"residual": "text"},
    f"{RESIDUAL} {RN50} --set residual=both": {"residual": "both"},
    f"--space taskres {RN50} --grid residual=text,image,both": {},
    # Tables 5 and 10: alpha, fixed and learned, on average and per data set.
    **{f"{RESIDUAL} --set alpha={a} --shots 1": {"alpha": a} for a in (0.1, 0.3, 0.5, 0.7, 1.0)},
    f"{RESIDUAL} --set learn_alpha=true --shots 1": {"learn_alpha": True, "alpha": 0.5},
    "--space taskres --grid alpha=0.1,0.3,0.5,0.7,1.0 --shots 1 --dataset all11 --per-task": {},
    # The base: enhanced, or as the released code has it.
    "--space enhanced-base+taskres --trials 1": {"residual": "text"},
    "--space taskres --preset reference --trials 1": {"weight_decay": 5e-4, "prompts": "reference"},
}
RAMT: dict[str, dict[str, Any]] = {
    # Which layers are masked (AMT, MMT, PMT, DMT), each with gradient dropout.
    **{f"{MASKS} {B16} --set masked={m}": {"masked": m} for m in ("mhsa", "mlp", "all", "dynamic")},
    f"--space rmt {B16} --grid masked=mhsa,mlp,all,dynamic --grid leak=0,1": {},
    # How the gradients of task and teacher are merged.
    f"{MASKS} {B16} --set leak=0": {"leak": 0.0},
    **{
        f"{MASKS} {B16} --set rule={rule}": {"rule": rule}
        for rule in ("sum", "sign", "agree", "prograd", "gradient-dropout")
    },
    # The leak, the threshold, the granularity.
    **{f"{MASKS} {B16} --set leak={x}": {"leak": x} for x in (0.1, 0.3, 0.5, 0.8, 1.0)},
    f"--space rmt {B16} --grid leak=0,0.1,0.3,0.5,0.8,1": {},
    **{f"{MASKS} {B16} --set threshold={x}": {"threshold": x} for x in (4e-3, 5e-3, 6e-3)},
    **{
        f"{MASKS} {B16} --set granularity={x}": {"granularity": x}
        for x in ("filter", "channel", "element")
    },
    # The tower that is masked.
    f"--space rmt-text --trials 1 {B16}": {"masked": "mhsa"},
    f"--space rmt-both --trials 1 {B16}": {"masked_text": "mhsa"},
    # Seven templates.
    **{
        f"{MASKS} {B16} --set prompts=paper --set masked={m}": {"masked": m}
        for m in ("mhsa", "all")
    },
    f"--space tip-adapter-f --trials 1 {B16}": {"prompts": "ensemble"},
    f"--space rmt+tip-adapter-f --trials 1 {B16} --set rmt.prompts=paper": {},
    f"--space rmt+tip-adapter-f --trials 1 {B16} --set rmt.masked=all": {},
    # Other methods on a masked model.
    f"--space rmt+coop --trials 1 {B16} --set context_tokens=16": {"context_tokens": 16},
    # Other backbones; a ResNet is masked as a whole.
    **{
        f"{MASKS} --dataset imagenet --backbone {b} --set masked=all": {"masked": "all"}
        for b in ("RN50", "RN101", "ViT-B-16", "ViT-B-32")
    },
    f"{MASKS} --dataset imagenet --backbone ViT-B-32": {"leak": 1.0},
    # Base-to-new classes, with and without gradient dropout, and the released code's settings.
    f"{MASKS} {B16} --protocol base-to-new": {"leak": 1.0},
    f"{MASKS} {B16} --protocol base-to-new --set leak=0": {"leak": 0.0},
    f"{MASKS} {B16} --preset reference": {"norm_weight": 1e-4, "patch_embedding": True},
    f"{MASKS} {B16} --protocol domain-generalization": {"leak": 1.0},
}
"""Command -> values of the trial's last stage."""


@pytest.mark.parametrize("command", TASKRES | RAMT)
def test_the_row_is_a_command(command: str) -> None:
    config = configure(shlex.split(command))
    assert config.problems() == []
    space = config.general_space
    expected = (TASKRES | RAMT)[command]
    values = values_of(space.first)
    assert {name: values[name] for name in expected} == expected or "imagenet" in command
    if space.grid:
        assert config.trials == config.settings.combinations > 1
        assert config.pruner == "none"
    else:
        assert config.trials == 1
        assert values["prompts"] == expected.get("prompts", values["prompts"])
