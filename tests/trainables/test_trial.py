"""The records that travel as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.trainables.trials import mask_trial, residual_trial, zero_shot_trial
from trainables.core.records import RecordError
from trainables.methods.base import TaskFacts
from trainables.methods.registry import METHODS
from trainables.trial import EpisodeSettings, Member, TaskSpec, TrialConfig

PRESETS = ("paper", "reference", "clean")


def presets() -> list[TrialConfig]:
    """Every method in every preset."""
    return [
        TrialConfig(name, preset, *method.preset(preset, TaskFacts("digits", 4, 40)))
        for name, method in METHODS.items()
        for preset in PRESETS
    ]


@pytest.mark.parametrize("trial", presets(), ids=lambda t: f"{t.method}-{t.preset}")
def test_json_and_back(trial: TrialConfig) -> None:
    travelled = TrialConfig.from_dict(json.loads(json.dumps(trial.to_dict(), allow_nan=False)))
    assert travelled == trial
    assert type(travelled.method_config) is type(trial.method_config)
    assert travelled.fingerprint() == trial.fingerprint()
    assert trial.problems() == []


def test_reading_changes_nothing() -> None:
    plain = residual_trial().to_dict()
    before = json.dumps(plain)
    TrialConfig.from_dict(plain)
    assert json.dumps(plain) == before


@pytest.mark.parametrize("trial", presets(), ids=lambda t: f"{t.method}-{t.preset}")
def test_the_flat_form_loses_no_field(trial: TrialConfig) -> None:
    """Two fields of one name would hide each other."""
    flat = trial.flat()
    parts = (trial.method_config, trial.optim)
    nested = {"method_config", "optim", "before", "per_episode", "members"}
    own = {f.name for f in dataclasses.fields(trial)} - nested
    fields = [f.name for part in parts for f in dataclasses.fields(part)]
    assert len(flat) == len(own) + len(fields)
    assert {name: flat[name] for name in own} == {name: getattr(trial, name) for name in own}
    for part in parts:
        for f in dataclasses.fields(part):
            assert flat[f.name] == getattr(part, f.name)


@pytest.mark.parametrize("trial", [residual_trial(), mask_trial(), zero_shot_trial()])
def test_the_fingerprint_sees_every_field(trial: TrialConfig) -> None:
    each = (EpisodeSettings("digits", 1, trial.method_config, trial.optim, 1.0),)
    other: dict[type, Any] = {float: 0.123, int: 77, str: "x", type(None): zero_shot_trial()}
    other[tuple] = each

    def changed(record: Any) -> list[Any]:
        return [
            replace(record, **{f.name: (not value) if type(value) is bool else other[type(value)]})
            for f in dataclasses.fields(record)
            if f.name != "members"
            and not dataclasses.is_dataclass(value := getattr(record, f.name))
        ]

    variants = changed(trial)
    variants.append(replace(trial, members=(Member(1.0, trial),)))
    variants += [replace(trial, method_config=c) for c in changed(trial.method_config)]
    variants += [replace(trial, optim=o) for o in changed(trial.optim)]
    prints = {trial.fingerprint(), *(variant.fingerprint() for variant in variants)}
    assert len(prints) == 1 + len(variants) > 10


def test_unknown_names_are_refused() -> None:
    plain = residual_trial().to_dict()
    with pytest.raises(RecordError, match=r"'method' .* 'taskrez'"):
        TrialConfig.from_dict(plain | {"method": "taskrez"})
    with pytest.raises(RecordError, match=r"'method_config.alfa' is unknown"):
        TrialConfig.from_dict(plain | {"method_config": {"alfa": 1.0}})
    with pytest.raises(RecordError, match=r"'optim.learning_rate' is unknown"):
        TrialConfig.from_dict(plain | {"optim": plain["optim"] | {"learning_rate": 1.0}})


def test_all_problems_at_once() -> None:
    trial = replace(mask_trial(leak=2.0), crop_scale=0.0)
    trial = replace(trial, optim=replace(trial.optim, lr=-1.0, epochs=0))
    found = trial.problems()
    assert len(found) == 4
    for words in ("leak must be in [0, 1], got 2.0", "lr must be", "epochs must be", "crop_scale"):
        assert sum(words in problem for problem in found) == 1


@pytest.mark.parametrize(("scale", "fine"), [(1.0, True), (0.1, True), (0.0, False), (1.1, False)])
def test_crop_scale_lies_in_its_range(scale: float, fine: bool) -> None:
    assert (replace(residual_trial(), crop_scale=scale).problems() == []) is fine


def test_cells_of_data_sets_of_one_name_have_labels_of_their_own() -> None:
    datasets = ("folder:x/a", "folder:y/a", "folder:z/a2")
    task = TaskSpec(datasets, "tiny", (1,), (1,))
    assert task.names == ("a1", "a2_", "a2")
    assert [task.label(episode) for episode in task.episodes] == [
        "a1-seed1",
        "a2_-seed1",
        "a2-seed1",
    ]
    assert TaskSpec(datasets[:2], "tiny", (1,), (1,)).names == ("a1", "a2")
