"""Results of mask sweeps: a single trial, several models, or several folded into one.

    python -m benchmarks.mask_results               the sweeps of docs/selection.md, about an hour
    python -m benchmarks.mask_results digits 1 2    data set, shots and draw of one sweep

Trains random trials of the space `rmt` on one draw with the embedded model, ranks them on
validation images, and prints the test accuracy of each kind of result. It reads the test split by
design.

Notation: k members, n images, c classes, W a weight, B_k its bits in member k.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
import torch
from torch import Tensor
from torch.func import functional_call

from spaces.registry import SPACES
from trainables.data.registry import DataSource
from trainables.data.sealed import TestPermit
from trainables.encoded_task import EncodedTask, zero_shot_logits
from trainables.methods.base import TaskFacts
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig
from trainables.validation import fit_sharpness, validation_metrics
from trainables.view import View

TASKS = (
    *(("digits", shots, draw) for shots, draw in ((1, 1), (1, 2), (4, 1), (4, 3), (16, 1))),
    *(("digits-rotated", shots, draw) for shots, draw in ((1, 1), (1, 3), (4, 2), (16, 2))),
)
TRIALS = 10
MEMBERS = 3

Weights = dict[str, Tensor]
"""Weights of the image tower by name, in place of the backbone's."""


@dataclass(frozen=True)
class Trained:
    """A trained trial."""

    masks: dict[str, Tensor]
    """B by the weight's name; a weight that is missing is whole."""
    val: Tensor
    """Logits [n, c] of the validation images."""
    test: Tensor
    """Logits [n, c] of the test images."""


class Sweep:
    """Random trials on one draw."""

    def __init__(self, dataset: str, shots: int, draw: int) -> None:
        self._task = EncodedTask("tiny", "cpu", DataSource())
        self._episode, self._draw = Episode(dataset, shots, draw), draw
        source = self._task.source.dataset(dataset)
        train, self.val = self._task.views(self._episode)
        self.test = self._task.view(source.sealed_split(TestPermit(dataset)), source.flip)
        self._space = SPACES["rmt"].build(TaskFacts(dataset, shots, len(train)))
        self._prompts = self._space.paper.method_config.prompts

    def configs(self, count: int) -> list[TrialConfig]:
        """The paper's setting and `count` random trials."""
        sampler = optuna.samplers.RandomSampler(seed=1000 * self._draw + self._episode.shots)
        study = optuna.create_study(sampler=sampler)
        return [self._space.paper, *(self._space.suggest(study.ask()) for _ in range(count))]

    def train(self, config: TrialConfig) -> Trained:
        """Train one trial to its end."""
        trainer = Trainer(config.seeded(self._draw), self._task, self._episode)
        for _ in range(trainer.epochs):
            trainer.run_epoch(validate=False)
        method = trainer.method
        masks = {name: mask.clone() for name, mask in method.masks().items()}  # type: ignore[operator]
        return Trained(masks, trainer.logits(self.val), trainer.logits(self.test))

    @torch.no_grad()
    def logits(self, weights: Weights, view: View) -> Tensor:
        """Logits [n, c] of the zero-shot model with other weights in the image tower."""
        backbone = self._task.backbone
        classes = self._task.class_features(self._episode.dataset, "all", self._prompts)
        images = torch.cat([backbone.preprocess.normalise(part) for part in view.batches(128)])
        features = functional_call(backbone.visual, weights, (images,))
        return zero_shot_logits(features, classes, backbone.logit_scale)

    def shares(self, members: Sequence[Trained]) -> Weights:
        """The mean of B_k by the weight's name."""
        visual = self._task.backbone.visual
        names = {name for member in members for name in member.masks}
        return {
            name: torch.stack(
                [
                    m.masks.get(name, torch.ones_like(visual.get_parameter(name))).float()
                    for m in members
                ]
            ).mean(0)
            for name in sorted(names)
        }

    def folded(self, shares: Weights) -> Weights:
        """W times its share."""
        visual = self._task.backbone.visual
        return {name: visual.get_parameter(name) * share for name, share in shares.items()}


def judge(dataset: str, shots: int, draw: int, trials: int = TRIALS) -> dict[str, float]:
    """Run one sweep; return the test accuracy in per cent of each kind of result."""
    sweep = Sweep(dataset, shots, draw)
    trained = [sweep.train(config) for config in sweep.configs(trials)]
    val, test = sweep.val.labels, sweep.test.labels

    def accuracy(logits: Tensor) -> float:
        return 100 * validation_metrics(logits, test)["val/accuracy"]

    def ranked(metric: str) -> list[Trained]:
        return sorted(trained, key=lambda t: -validation_metrics(t.val, val)[metric])

    best = ranked("val/likelihood")[:MEMBERS]
    shares = sweep.shares(best)
    pool = [(fit_sharpness(t.val, val) * t.test).log_softmax(-1) for t in best]
    majority = {name: (share > 0.5).float() for name, share in shares.items()}
    return {
        "zero-shot": accuracy(sweep.logits({}, sweep.test)),
        "paper": accuracy(trained[0].test),
        "mean": sum(accuracy(t.test) for t in trained[1:]) / trials,
        "by accuracy": accuracy(ranked("val/accuracy")[0].test),
        "by likelihood": accuracy(best[0].test),
        "by test": max(accuracy(t.test) for t in trained),
        "soup": accuracy(sweep.logits(sweep.folded(shares), sweep.test)),
        "majority": accuracy(sweep.logits(sweep.folded(majority), sweep.test)),
        "pool": accuracy(torch.stack(pool).sum(0)),
    }


def main() -> None:
    """Run one sweep, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", nargs="*", help="data set, shots and draw")
    parser.add_argument("--trials", type=int, default=TRIALS, help="random trials per sweep")
    options = parser.parse_args()
    task = options.task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for dataset, shots, draw in [(task[0], int(task[1]), int(task[2]))] if task else TASKS:
        found = judge(dataset, shots, draw, options.trials)
        cells = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(f"{dataset} {shots} shots, draw {draw}: {cells}", flush=True)


if __name__ == "__main__":
    main()
