"""Flat parameters of a trial, without Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainables.data.registry import DataSource
from trainables.methods.masking.rmt import MaskTuningConfig
from trainables.methods.taskres import TaskResConfig
from trainables.parameters import ParameterError, read_parameters
from trainables.presets import preset_trial, task_facts
from trainables.trial import TrialConfig


def resolved(**parameters: Any) -> TrialConfig:
    return read_parameters(parameters).trial(DataSource(), "vit")


def test_what_is_not_given_has_the_paper_s_value() -> None:
    found = read_parameters({"method": "taskres", "dataset": "digits", "shots": 4})
    facts = task_facts(found.task, DataSource(), "vit")
    assert found.trial(DataSource(), "vit") == preset_trial("taskres", "paper", facts)
    assert (found.task.backbone, found.task.seeds) == ("tiny", (1,))


def test_fields_of_method_optimiser_and_trial_are_set_by_name() -> None:
    found = resolved(
        method="taskres", shots=2, alpha=np.float64(0.7), lr=0.01, epochs=np.int64(9), crop_scale=1
    )
    assert isinstance(found.method_config, TaskResConfig)
    assert (found.method_config.alpha, found.optim.lr, found.optim.epochs) == (0.7, 0.01, 9)
    assert found.preset == "search"


def test_all_shots_are_those_of_the_largest_class() -> None:
    task = read_parameters({"dataset": "digits", "shots": "all"}).task
    sizes = DataSource().dataset("digits").split("train").labels.bincount()
    assert (task.shots, task.draws) == ((int(sizes.max()),), "seeded-capped")
    assert read_parameters({"shots": ["all"], "validation": "folds"}).task.draws == "joined"
    assert read_parameters({"shots": "all", "draws": "seeded"}).task.draws == "seeded"


def test_stages_have_their_own_fields_and_one_seed() -> None:
    found = resolved(
        **{
            "method": "rmt+taskres",
            "shots": 2,
            "rmt.lr": 1e-3,
            "leak": 0.25,
            "alpha": 0.5,
            "seed": 3,
        }
    )
    assert [stage.method for stage in found.stages] == ["rmt", "taskres"]
    first = found.stages[0]
    assert isinstance(first.method_config, MaskTuningConfig)
    assert (first.optim.lr, first.method_config.leak) == (1e-3, 0.25)
    assert {stage.seed for stage in found.stages} == {3}


def test_a_given_value_holds_for_every_data_set() -> None:
    task: dict[str, Any] = {"method": "taskres", "shots": [1, 16], "dataset": "digits"}
    assert len({own.optim.epochs for own in resolved(**task).per_episode}) == 2
    assert {own.optim.epochs for own in resolved(**task, epochs=7).per_episode} == {7}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"method": "taskrez"}, "There is no method 'taskrez'"),
        ({"alpa": 0.5}, "There is no parameter 'alpa' of taskres. Did you mean alpha"),
        (
            {"method": "rmt+taskres", "lr": 1.0},
            "lr must name its stage, as several have it. Use rm",
        ),
        (
            {"method": "rmt+taskres", "coop.lr": 1.0},
            "There is no parameter 'coop.lr' of rmt+taskres",
        ),
        ({"shots": 0}, "shots must be at least 1, got 0."),
        ({"shots": "four"}, "'shots[0]' must be a valid integer"),
        ({"preset": "best"}, "preset must be one of paper, reference, clean, got 'best'."),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5."),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'."),
        ({"dataset": "folder:birds"}, "dataset must have an absolute path"),
        ({"seeds": [1, 1]}, "seeds must be one or several different numbers, got [1, 1]."),
    ],
)
def test_an_error_names_the_rule_the_value_and_the_fix(
    parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterError) as error:
        read_parameters(parameters)
    assert words in str(error.value)


def test_all_errors_come_at_once() -> None:
    with pytest.raises(ParameterError) as error:
        read_parameters({"methd": "rmt", "lrr": 0.1, "shots": 0, "preset": "no"})
    assert len(error.value.problems) == 4
    with pytest.raises(ParameterError) as error:
        resolved(method="taskres", epochs=2.5, alpha="much", crop_scale="half")
    assert len(error.value.problems) == 3
    with pytest.raises(ParameterError, match="lr must be positive and finite"):
        resolved(method="taskres", lr=-1.0)
