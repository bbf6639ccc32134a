"""Every row of the papers' tables that a method can express is one command of `search.run`."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from search.driver import preflight as preflight_module
from search.driver.backbone_probe import BackboneProbe
from search.driver.preflight import preflight
from search.options import configure
from search.papers.cells import row_config, sources
from search.papers.schema import Row, Table, papers
from trainables.core.optim import OptimConfig
from trainables.fields import values_of
from trainables.methods.base import TaskFacts

ROWS = {
    f"{name}/{key}: {row.name}": (table, row)
    for name, paper in papers().items()
    for key, table in paper.tables.items()
    for row in table.rows
    if row.method not in ("", "zero-shot")  # every sweep evaluates the zero-shot model
}


def command(table: Table, row: Row, *task: str) -> list[str]:
    """The options of the sweep that trains this row only, with the paper's protocol."""
    options = ["--space", row.method, "--preset", row.preset, "--trials", "1"]
    options += ["--protocol", table.protocol, *task]
    for field, value in row.settings.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        options += ["--set", f"{field}={text}"]
    return options


@pytest.mark.parametrize("name", ROWS)
def test_the_row_is_a_command(name: str) -> None:
    """Which has the row's configuration on every data set and number of shots."""
    table, row = ROWS[name]
    counts = row.shots or table.shots
    for backbone in row.backbones or table.backbones:
        task = ["--dataset", ",".join(table.datasets), "--shots", ",".join(map(str, counts))]
        task += ["--backbone", backbone, "--seeds", "1,2,3", "--draws", "coop"]
        config = configure(command(table, row, *task))
        assert config.problems() == []
        assert config.trials == 1
        tower = "resnet" if backbone.startswith("RN") else "vit"
        for dataset in sources(table):
            for shots in counts:
                facts = TaskFacts(dataset, shots, 10 * shots, tower, protocol=table.protocol)
                expected = row_config(row, facts)
                assert config.open_space(facts).first == expected
                assert expected.problems() == []


DISTINCT = {
    (row.method, row.preset, repr(row.settings), table.protocol): name
    for name, (table, row) in ROWS.items()
}


@pytest.mark.slow  # a second each
@pytest.mark.parametrize("name", DISTINCT.values())
def test_the_row_can_be_trained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the digits with the embedded model, as far as a sweep is checked before it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        preflight_module, "BackboneProbeProcess", lambda s: nullcontext(BackboneProbe(s))
    )
    config = configure(command(*ROWS[name], "--shots", "1", "--seeds", "1"))
    plan = preflight(config, trial_write=False)
    assert plan.space.paper.methods == ROWS[name][1].method


@pytest.mark.parametrize(
    ("row", "dataset", "expected"),
    [
        # The residual's place and weight, and the adapter of the ablation.
        ("taskres/table-1: TaskRes", "imagenet", {"lr": 2e-4, "epochs": 200, "alpha": 0.5}),
        ("taskres/table-2: phi(t)", "imagenet", {"keep_base": False}),
        ("taskres/table-2: t + alpha phi(t)", "imagenet", {"keep_base": True, "alpha": 0.5}),
        ("taskres/table-4: TaskRes-I", "imagenet", {"residual": "image"}),
        ("taskres/table-4: TaskRes-I&T", "imagenet", {"residual": "both"}),
        ("taskres/table-8: TaskRes", "oxford_flowers", {"alpha": 1.0, "lr": 2e-3}),
        ("taskres/table-10: alpha = 0.5", "oxford_flowers", {"alpha": 0.5}),
        ("taskres/table-10: learned alpha", "oxford_flowers", {"learn_alpha": True, "alpha": 0.5}),
        # Leak and learning rate depend on data set and protocol.
        ("rmt/table-1: R-AMT", "eurosat", {"leak": 0.3, "lr": 8e-5, "masked": "mhsa"}),
        ("rmt/table-1: R-AMT", "imagenet", {"leak": 1.0, "lr": 3e-5, "epochs": 10}),
        ("rmt/table-1: R-AMT", "sun397", {"leak": 1.0, "prompts": "single"}),
        ("rmt/table-1: Tip-Adapter-F", "imagenet", {"prompts": "single"}),
        ("rmt/table-1: Tip-Adapter-F + R-AMT", "imagenet", {"prompts": "single"}),
        ("rmt/table-1: CoOp + R-AMT", "imagenet", {"context_tokens": 16, "init_words": ""}),
        ("rmt/table-2: R-AMT", "eurosat", {"leak": 1.0}),
        ("rmt/table-2: AMT", "eurosat", {"leak": 0.0}),
        ("rmt/table-3: R-AMT", "imagenet", {"leak": 1.0}),
        # Gradient rules, thresholds, groups, towers and templates.
        ("rmt/table-4: AMT + AgreeGrad", "imagenet", {"rule": "agree"}),
        ("rmt/table-6: threshold 0.004", "imagenet", {"threshold": 4e-3, "init": 1e-2}),
        ("rmt/table-9: R-PMT", "imagenet", {"prompts": "paper", "masked": "all"}),
        ("rmt/table-9: Tip-Adapter-F + R-PMT", "imagenet", {"prompts": "ensemble"}),
        ("rmt/table-12: filter-wise", "imagenet", {"granularity": "filter"}),
        ("rmt/table-14: both encoders", "imagenet", {"masked": "mhsa", "masked_text": "mhsa"}),
        ("rmt/table-15: R-DMT", "dtd", {"masked": "dynamic"}),
    ],
)
def test_the_row_has_the_papers_settings(row: str, dataset: str, expected: dict[str, Any]) -> None:
    table, own = ROWS[row]
    shots = max(table.shots)
    found = values_of(row_config(own, TaskFacts(dataset, shots, 752, protocol=table.protocol)))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    "options",
    [
        "--space taskres --grid residual=text,image,both",
        "--space taskres --grid alpha=0.1,0.3,0.5,0.7,1.0 --shots 1 --dataset all11 --per-task",
        "--space rmt --grid masked=mhsa,mlp,all,dynamic --grid leak=0,1",
        "--space rmt --grid leak=0,0.1,0.3,0.5,0.8,1",
    ],
)
def test_the_rows_of_a_table_are_one_grid(options: str) -> None:
    config = configure(shlex.split(options))
    assert config.problems() == []
    assert config.trials == config.settings.combinations > 1
    assert config.pruner == "none"


def test_the_authors_code_is_a_preset() -> None:
    options = "--trials 1 --preset reference --dataset imagenet"
    taskres = configure(shlex.split(f"--space taskres {options}")).general_space.first
    assert isinstance(taskres.optim, OptimConfig)
    assert (taskres.optim.weight_decay, taskres.method_config.prompts) == (5e-4, "reference")
    masks = configure(shlex.split(f"--space rmt {options}")).general_space.first.method_config
    assert (masks.norm_weight, masks.patch_embedding) == (1e-4, True)
