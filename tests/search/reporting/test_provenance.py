"""The command that reproduces a sweep."""

from __future__ import annotations

import shlex

import pytest

from search.options import configure
from search.reporting.provenance import command


@pytest.mark.parametrize(
    "options",
    [
        ["--space", "taskres"],
        ["--space", "rmt", "--shots", "1,2", "--seeds", "7", "--protocol", "base-to-new"],
        [
            "--space",
            "taskres",
            "--dataset",
            "digits,folder:/a b",
            "--draws",
            "coop",
            "--generate-split",
        ],
        ["--shots-file", "/the lists/shot_{shots}-seed_{seed}.json"],
        ["--second-objective", "mask/sparsity:max"],
        ["--sampler", "random", "--pruner", "none", "--seed", "3", "--eval-seeds", "2"],
        ["--preset", "clean", "--set", "crop_scale=0.5", "--range", "lr=1e-5:1e-2:log"],
        ["--space", "taskres", "--grid", "alpha=0.1,0.5", "--grid", "residual=text,image"],
        ["--choice", "batch_size=8,16", "--prompt", "a {}.", "--prompt", "the {}."],
        ["--storage", "/some where", "--trials", "5", "--skip-unreadable"],
    ],
)
def test_the_command_makes_the_same_sweep(options: list[str]) -> None:
    config = configure([*options, "--name", "mine"])
    words = shlex.split(command(config))
    assert words[:3] == ["python", "-m", "search.run"]
    assert configure(words[3:]) == config
