"""Effect of bfloat16 on the accuracy of mask tuning, on real images.

    python -m benchmarks.precision [--shots 4,16] [--preset clean]

Trains R-AMT on `digits` with the embedded model in float32 and in bfloat16 on the same draws, and
evaluates both on the whole validation pool in float32; the test split stays sealed.
`benchmarks.mask_step` measures the speed of both.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import get_args

import torch

from benchmarks.methods import SEEDS, judge
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.base import Preset, TaskFacts
from trainables.methods.masking.mask_method import Precision
from trainables.presets import preset_trial
from trainables.trial import Episode, TrialConfig


def trial(
    preset: Preset, episode: Episode, precision: Precision, bench: EncodedTask
) -> TrialConfig:
    """R-AMT by its preset, in this precision."""
    images = len(bench.views(episode)[0])
    setting = TaskFacts(episode.dataset, episode.shots, images, bench.backbone.tower)
    found = preset_trial("rmt", preset, setting)
    return replace(found, method_config=replace(found.method_config, precision=precision))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--shots", default="4,16", help="images per class (default: %(default)s)")
    parser.add_argument("--preset", choices=get_args(Preset), default="clean")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = EncodedTask("tiny", "cpu", DataSource())
    for shots in map(int, given.shots.split(",")):
        episodes = [Episode("digits", shots, seed) for seed in SEEDS]
        found = {
            precision: [judge(trial(given.preset, c, precision, bench), c, bench) for c in episodes]
            for precision in get_args(Precision)
        }
        costs = [low - full for full, low in zip(*found.values(), strict=True)]
        for precision, values in found.items():
            print(f"{shots}-shot {precision}: {[f'{value:.2%}' for value in values]}", flush=True)
        print(f"{shots}-shot: {100 * statistics.mean(costs):+.2f} points", flush=True)


if __name__ == "__main__":
    main()
