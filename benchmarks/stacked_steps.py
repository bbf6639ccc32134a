"""Epochs of a trial's draws as one stack, compared with one after the other.

    python -m benchmarks.stacked_steps                TaskRes and others at 10, 25 and 100 classes
    python -m benchmarks.stacked_steps --draws 5      five draws instead of three

Both sides train equal draws of 16 shots in turns, on one thread and features of 512 dimensions. The
ratio is one of processor time, median over the turns; the comparison is void, and fails, if what is
learned differs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass, replace

import torch

from benchmarks.features import Synthetic
from spaces.registry import find_space
from trainables.methods.base import TaskFacts
from trainables.stack import Lockstep
from trainables.trainer import Trainer
from trainables.trial import Episode

_SHOTS = 16


@dataclass(frozen=True)
class Figures:
    """Processor time per epoch of all draws, in seconds."""

    single: float
    """One after the other."""
    stacked: float
    """As one stack."""
    ratio: float
    """`single` / `stacked`, median over the turns."""


def measure(method: str, classes: int, draws: int, epochs: int, turns: int) -> Figures:
    """Train `epochs` epochs of each side per turn. Raises `AssertionError` if they differ."""
    paper = find_space(method).build(TaskFacts("noise", _SHOTS, _SHOTS * classes)).paper
    optim = replace(paper.optim, epochs=turns * epochs + 1, batch_size=256)
    config = replace(paper, optim=optim, crop_scale=1.0)
    task = Synthetic(classes, _SHOTS, 4)
    seeds = [Episode("noise", _SHOTS, seed) for seed in range(draws)]
    alone, together = ([Trainer(config, task, seed) for seed in seeds] for _ in range(2))
    lockstep = Lockstep()
    times: list[tuple[float, float]] = []
    for turn in range(turns + 1):  # the first one opens optimisers and stacks
        count = epochs if turn else 1
        begin = time.process_time()
        for _ in range(count):
            for trainer in alone:
                trainer.run_epoch(validate=False)
        middle = time.process_time()
        for _ in range(count):
            lockstep.run_epoch(together, validate=False)
        if turn:
            times.append((middle - begin, time.process_time() - middle))
    for one, other in zip(alone, together, strict=True):
        for name, tensor in one.method.trainable().items():
            torch.testing.assert_close(other.method.trainable()[name], tensor, rtol=1e-3, atol=1e-5)
    single, stacked = (statistics.median(side) / epochs for side in zip(*times, strict=True))
    return Figures(single, stacked, statistics.median(one / other for one, other in times))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacked_steps")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30, help="epochs per turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.draws} draws, load average {os.getloadavg()[0]:.1f} before")
    for method in ("taskres", "clap", "tip-adapter-f", "clip-adapter", "text-adapter"):
        for classes in (10, 25, 100):
            found = measure(method, classes, options.draws, options.epochs, options.turns)
            print(
                f"{method}, {classes} classes: {1e3 * found.single:.2f} ms one after the other, "
                f"{1e3 * found.stacked:.2f} ms as a stack, {found.ratio:.2f} times"
            )


if __name__ == "__main__":
    main()
