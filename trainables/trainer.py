"""Training of one method on one few-shot draw: epochs, validation and the state in between.

A sequence of methods is a `Pipeline`, see `stages.py`.

Notation: n training images, b batch, c classes, s image side.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.core.optim import make_optimiser
from trainables.core.tensor_file import under
from trainables.data.class_subsets import Half
from trainables.encoded_task import EncodedTask, zero_shot_logits
from trainables.methods.base import Batch, BuildContext, Schedule, Support
from trainables.methods.registry import METHODS
from trainables.trial import Episode, TrialConfig
from trainables.validation import pool_of, validation_metrics
from trainables.view import AUGMENTED_VIEWS, View, ViewRows

_IMAGES = 128  # per forward pass in validation
_FEATURES = 8192


class NonFiniteError(FloatingPointError):
    """Training diverged (NaN or infinity)."""


def check_finite(metrics: Mapping[str, float], epoch: int) -> None:
    """Raises `NonFiniteError` for the first metric that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} became {value} in epoch {epoch}")


class Trainer:
    """One method, its optimiser and its random generators; `config.before` is ignored here."""

    def __init__(
        self,
        config: TrialConfig,
        task: EncodedTask,
        episode: Episode,
        pool: Sequence[Episode] = (),
        left_out: Tensor | None = None,
    ) -> None:
        """`pool`: episodes whose labelled images are validated on, see `pool_of`; by default the
        episode's own validation images. `left_out`: rows of the training images that are validated
        on instead, and not trained on. Raises `MethodError`, `DataError`, `BackboneError`."""
        self.config, self.encoded_task, self.episode = config, task, episode
        self.train, self.val = task.views(episode)
        if pool:
            self.val = pool_of(task, episode, pool).view
        if left_out is not None:
            kept = torch.ones(len(self.train), dtype=torch.bool)
            kept[left_out] = False
            self.val = ViewRows([self.train], left_out)
            self.train = ViewRows([self.train], kept.nonzero().flatten())
        where = episode.dataset, episode.half, config.method_config.prompts
        classes = task.classes(*where)
        self._classes = classes.features
        self._zero_shot = task.zero_shot(*where)
        self._rates = config.optim.learning_rates(len(self.train))
        self._first_values = _generator(config.seed, episode.seed, "first values")
        self.method = METHODS[config.method].build(
            config.method_config,
            BuildContext(
                task.backbone,
                classes,
                Schedule(self._rates),
                len(self.train),
                self._first_values,
            ),
        )
        # One generator per purpose: the random numbers that a method draws cannot change the order
        # of images or the crops.
        self._rng = {
            purpose: _generator(config.seed, episode.seed, purpose)
            for purpose in ("order", "crop", "method")
        }
        self.epoch = 0
        """Epochs trained so far."""
        self.latest: dict[str, float] = {}
        """Metrics of the latest epoch of this process."""
        self._prepared = False
        self._optimiser: torch.optim.Optimizer | None = None
        self._taken: tuple[dict[str, float], dict[str, float] | None] | None = None

    @property
    def epochs(self) -> int:
        """Number of epochs: 0 for a method with nothing to train."""
        return self.config.epochs

    @property
    def is_idle(self) -> bool:
        """Whether training provably leaves the model as it is, so that epochs only count. The
        steps of SGD and the decay of AdamW are not bounded by the learning rates."""
        return self.config.optim.optimiser == "adam" and self.method.is_idle

    @property
    def backbone(self) -> Backbone:
        """The backbone that the method is trained on."""
        return self.encoded_task.backbone

    def run_epoch(self, validate: bool = True) -> dict[str, float]:
        """Train on all images once; return `train/*`, the method's own scalars and, with
        `validate`, `val/*`; no `train/*` if the training is idle. Raises `NonFiniteError`."""
        self.prepare()
        if self.is_idle:
            self.epoch += 1
            if validate and not self.latest:
                self.latest = self.validate()
            return self.latest | self.method.progress()
        trained, validated = self._taken or (self._train_epoch(), None)
        self._taken = None
        metrics = trained | {"train/lr": self.epoch_rates()[0]}
        self.epoch += 1
        self.method.end_epoch(self.epoch, self.epochs)
        metrics |= self.method.progress()
        if validate:
            metrics |= validated or self.validate()
        check_finite(metrics, self.epoch)
        self.latest = metrics
        return metrics

    def _train_epoch(self) -> dict[str, float]:
        """Take the steps of an epoch; return the mean losses."""
        optimiser, rates = self._open_optimiser(), self.epoch_rates()
        sums: dict[str, float] = {}
        for batch, rate in zip(self._batches(), rates, strict=True):
            for name, value in self.method.backward(batch, self._rng["method"]).items():
                sums[name] = sums.get(name, 0.0) + value
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        return {name: total / len(rates) for name, total in sums.items()}

    def advancing(self) -> Sequence[Trainer]:
        """Return itself, see `Training`."""
        return [self]

    def epoch_rates(self) -> tuple[float, ...]:
        """Return the learning rate of each step of the next epoch."""
        steps = self.config.optim.steps_per_epoch(len(self.train))
        return self._rates[self.epoch * steps : (self.epoch + 1) * steps]

    def epoch_order(self) -> Tensor:
        """Draw the order of the images in the next epoch, int64 [n]."""
        return torch.randperm(len(self.train), generator=self._rng["order"])

    def epoch_features(self) -> Tensor:
        """Return the features [n, d] of the view of the next epoch."""
        number = 0 if self.config.crop_scale == 1 else 1 + self.epoch % AUGMENTED_VIEWS
        return self.train.features(number, self.config.crop_scale)

    def take_epoch(
        self, trained: dict[str, float], validated: dict[str, float] | None = None
    ) -> None:
        """Record that the steps of the next epoch have been taken by a stack, with these mean
        losses and, if it was validated, `val/*`; `run_epoch` then only reports them."""
        self._taken = trained, validated

    def moments(self, number: int) -> dict[str, Tensor]:
        """Return the optimiser's state of a trainable tensor, in their order; empty before the
        first step."""
        optimiser = self._open_optimiser()
        state = optimiser.state.get(optimiser.param_groups[0]["params"][number], {})
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    def set_moments(self, number: int, moments: dict[str, Tensor]) -> None:
        """Replace the optimiser's state of a trainable tensor."""
        optimiser = self._open_optimiser()
        optimiser.state[optimiser.param_groups[0]["params"][number]] = moments

    @property
    def has_drawn(self) -> bool:
        """Whether the method has drawn random numbers, for its first values or in training."""
        seeds = self.config.seed, self.episode.seed
        return any(
            not torch.equal(rng.get_state(), _generator(*seeds, purpose).get_state())
            for purpose, rng in (
                ("first values", self._first_values),
                ("method", self._rng["method"]),
            )
        )

    def validate(self) -> dict[str, float]:
        """Return accuracy, mean cross entropy and likelihood on the validation images, see
        `validation_metrics`."""
        return self.validate_on(self.val)

    def validate_on(self, view: View) -> dict[str, float]:
        """Return the same for other images of the same classes."""
        return validation_metrics(self.logits(view), view.labels)

    @torch.no_grad()
    def logits(self, view: View) -> Tensor:
        """Return the logits [n, c] of the tuned model on `view`."""
        self.prepare()
        if self.method.input_kind == "features":
            return torch.cat([self.method(part) for part in view.features().split(_FEATURES)])
        normalise = self.encoded_task.backbone.preprocess.normalise
        return torch.cat([self.method(normalise(batch)) for batch in view.batches(_IMAGES)])

    def validation_logits(self) -> Tensor:
        """Return the logits [n, c] of the validation images."""
        return self.logits(self.val)

    def forecast(self) -> dict[str, float]:
        """Return what is known before training, see `Method.forecast`."""
        return self.method.forecast()

    def warnings(self) -> list[str]:
        """Return what the user should know before training, see `Method.warnings`."""
        return self.method.warnings()

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return what was learned, see `Method.artifact`."""
        self.prepare()
        return self.method.artifact()

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Load what `artifact` returned, see `Method.load_artifact`."""
        self.method.load_artifact(tensors, metadata)
        self._prepared = True

    def set_classes(self, dataset: str, half: Half) -> None:
        """Classify another data set or half of the classes, see `Method.set_classes`."""
        self.method.set_classes(
            self.encoded_task.classes(dataset, half, self.config.method_config.prompts)
        )

    @property
    def parameter_count(self) -> int:
        """Number of learned numbers."""
        return sum(tensor.numel() for tensor in self.method.trainable().values())

    def progress(self) -> dict[str, float]:
        """Return scalars about what was learned, see `Method.progress`."""
        return self.method.progress()

    def merged_backbone(self) -> EncodedTask:
        """Return the task encoded by the backbone that the method has changed; its features are
        cached if the stage is fixed, because every trial uses them."""
        self.prepare()
        return self.encoded_task.with_backbone(
            self.method.merged_backbone(), cache=self.config.fixed
        )

    def prepare(self) -> None:
        """Prepare the method before its first step, once, unless its artifact was loaded."""
        if self._prepared:
            return
        self._prepared = True
        scale = self.config.crop_scale

        def features(view: int) -> Tensor:
            return self.train.features(view if scale == 1 else 1 + view, scale)

        views = 1 if scale == 1 or not self.train.has_pixels else AUGMENTED_VIEWS
        self.method.prepare(Support(self.train.labels, views, features, self._batches))

    def _batches(self) -> Iterator[Batch]:
        """The batches of one epoch in random order; see `OptimConfig.batch_size` for the last."""
        images, size = len(self.train), self.config.optim.batch_size
        read = self._features() if self.method.input_kind == "features" else self._images
        order = self.epoch_order()
        for step in range(self.config.optim.steps_per_epoch(images)):
            index = order[step * size : (step + 1) * size]
            inputs, logits = read(index)
            labels = self.train.labels[index.to(self.train.labels.device)]
            yield Batch(inputs, labels, logits)

    def _features(self) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Rows [b] -> features [b, d] of this epoch's view, and zero-shot logits."""
        features = self.epoch_features()

        def read(index: Tensor) -> tuple[Tensor, Tensor | None]:
            inputs = features[index.to(features.device)]
            return inputs, self._teach(inputs) if self.method.uses_zero_shot else None

        return read

    def _images(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows [b] -> preprocessed images [b, 3, s, s] and zero-shot logits."""
        normalise = self.encoded_task.backbone.preprocess.normalise
        if self.config.crop_scale < 1:
            inputs = normalise(self.train.crops(index, self.config.crop_scale, self._rng["crop"]))
            return inputs, self._zero_shot(inputs) if self.method.uses_zero_shot else None
        inputs = normalise(self.train.images(index))
        if not self.method.uses_zero_shot:
            return inputs, None
        features = self.train.features()  # of the test view: the same in every epoch
        return inputs, self._teach(features[index.to(features.device)])

    def _teach(self, features: Tensor) -> Tensor:
        """Features [b, d] -> zero-shot logits [b, c]."""
        return zero_shot_logits(features, self._classes, self.encoded_task.backbone.logit_scale)

    def _open_optimiser(self) -> torch.optim.Optimizer:
        # Opened at the first step, when `prepare` has chosen which tensors are trained.
        if self._optimiser is None:
            tensors = self.method.trainable().values()
            self._optimiser = make_optimiser(tensors, self.config.optim)
        return self._optimiser

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that the rest of the training depends on: tensors, and plain JSON."""
        tensors = {f"method/{k}": v for k, v in self.method.state_dict().items()}
        tensors |= {f"rng/{k}": rng.get_state() for k, rng in self._rng.items()}
        if self._optimiser is not None:
            for index, moments in self._optimiser.state_dict()["state"].items():
                # A stack's trainers share the number of steps, and a file holds no shared tensors.
                there = {
                    k: v if v.dim() else v.clone() for k, v in moments.items() if v is not None
                }
                tensors |= {f"optimiser/{index}/{k}": v for k, v in there.items()}
        return tensors, {"epoch": self.epoch, "prepared": self._prepared}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from `state`; the result is the same to the last bit."""
        self.epoch, self._prepared = int(plain["epoch"]), bool(plain["prepared"])
        self.method.load_state_dict(under(tensors, "method/"))
        for purpose, state in under(tensors, "rng/").items():
            self._rng[purpose].set_state(state.cpu())
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in under(tensors, "optimiser/").items():
            index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = value
        if moments:
            optimiser = self._open_optimiser()
            optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
