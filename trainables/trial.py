"""Records that describe a trial, sent as JSON between driver, workers and disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from trainables.core.protocols import Objective, Protocol, Validation
from trainables.core.records import RecordError, from_field, from_plain, parsed_by, upgraded

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

    from trainables.core.optim import OptimConfig
    from trainables.data.class_subsets import Half
    from trainables.data.registry import DataSource
    from trainables.methods.base import Method, MethodConfig


@dataclass(frozen=True)
class Episode:
    """One training of a trial: a data set, a number of shots, a draw."""

    dataset: str
    """Specification of the data set, e.g. `digits` or `folder:PATH`."""
    shots: int
    """Labelled training images per class."""
    seed: int
    """Seed of the few-shot draw."""
    half: Half = "all"
    """The classes it is restricted to."""


@dataclass(frozen=True)
class TaskSpec:
    """The few-shot tasks that every trial of a sweep solves."""

    datasets: tuple[str, ...]
    """Data sets: a name; all11 for the field's eleven; folder:PATH for a folder of class folders, a
    table (csv, parquet) of path and label or a split file (json); bundle:FILE for precomputed
    features."""
    backbone: str
    """tiny; an open_clip architecture with its tag or a local file (ViT-B-16,
    ViT-B-32:laion2b_s34b_b79k, RN50:weights.pt), or with a file and the tag of the weights that it
    was trained from (ViT-L-14:laion2b_s32b_b82k@weights.pt); a model folder or hf-hub:OWNER/NAME;
    openai:FILE for a state dict in OpenAI's layout; MASKS.safetensors@SPEC for one of these with
    an artifact's masks folded in, MASKS.pth.tar@SPEC with those of a checkpoint of R-AMT's code."""
    shots: tuple[int, ...]
    """Training images per class; min(N, 4) more per class are for validation. all: every labelled
    image (with --validation folds, those for validation, too)."""
    seeds: tuple[int, ...]
    """Few-shot draws that a trial is averaged over."""
    protocol: Protocol = "few-shot"
    """few-shot; base-to-new: train on the first half of the classes, evaluate on both halves;
    domain-generalization: train on the first data set, evaluate on its shifts; cross-dataset: train
    on the first, evaluate on the others."""
    draws: str = "seeded"
    """How few-shot images are drawn: seeded (reproducible from the seed on any machine),
    seeded-capped (the same, but a class with fewer images gives all of them), joined (the same,
    from training and validation images together) or coop (the field's rule, its published
    draws)."""
    class_names: tuple[str, ...] = ()
    """A file with your own names of the classes, one per line, in the order of the data set's (of
    a folder: alphabetical)."""
    prompt: tuple[str, ...] = ()
    """Template of the texts that describe the classes, e.g. "a photo of a {}, a type of bird.", in
    place of the data set's. Repeatable: several are an ensemble."""
    generate_split: bool = False
    """If a split file is missing, generate a split by the published rule."""
    skip_unreadable: bool = False
    """Leave out unreadable images."""
    validation: Validation = "held-out"
    """Images that trials are compared on. held-out: the validation images of each draw;
    pooled: all labelled images of all draws, except those that a model was trained on; folds: the
    training images themselves, each by a model that was trained without it."""
    objective: Objective = "accuracy"
    """What trials are ranked by: accuracy on their validation images, or likelihood, the geometric
    mean of the probability of the true class at the best temperature, which is less noisy."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets that are trained on."""
        alone = self.protocol in ("domain-generalization", "cross-dataset")
        return self.datasets[:1] if alone else self.datasets

    @property
    def half(self) -> Half:
        """The classes that are trained on."""
        return "base" if self.protocol == "base-to-new" else "all"

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """The trainings of a trial, whose objective is their mean, seed by seed: the first episodes
        are a fair sample of all."""
        return tuple(
            Episode(dataset, shots, seed, self.half)
            for seed in self.seeds
            for dataset in self.sources
            for shots in self.shots
        )

    @property
    def short(self) -> str:
        """Short name of the data sets, for names of sweeps and files."""
        return _plain(self.datasets[0]) if len(self.sources) == 1 else f"{len(self.sources)}sets"

    @property
    def names(self) -> tuple[str, ...]:
        """Short distinct names of `sources`, for files."""
        plain = [_plain(source) for source in self.sources]
        found: list[str] = []
        for place, name in enumerate(plain, start=1):
            one = name if plain.count(name) == 1 else f"{name}{place}"
            while one != name and one in {*plain, *found}:
                one += "_"
            found.append(one)
        return tuple(found)

    def label(self, episode: Episode) -> str:
        """Return a file name for an episode, without what all episodes have in common."""
        parts = [
            self.names[self.sources.index(episode.dataset)] * (len(self.sources) > 1),
            f"{episode.shots}shot" * (len(self.shots) > 1),
            f"seed{episode.seed}",
        ]
        return "-".join(part for part in parts if part)

    def source(self, root: str) -> DataSource:
        """Return the source of its data; `root` is the folder of the benchmark data sets."""
        from trainables.data.registry import DataSource

        return DataSource(
            root,
            self.generate_split,
            self.draws,
            self.skip_unreadable,
            self.class_names,
            self.prompt,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the fields of later releases at their defaults: the
        task of an old sweep keeps its digest."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in ("validation", "objective", "class_names", "prompt"):
            if getattr(self, name) == getattr(TaskSpec, name):
                del plain[name]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TaskSpec:
        """The inverse of `to_dict`; raises `RecordError`."""
        return from_plain(cls, plain)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return upgraded(handler(source), _upgrade)


def _upgrade(plain: dict[str, Any]) -> dict[str, Any]:
    """A `TaskSpec` of an earlier release with the present fields."""
    fields = dict(plain)
    if "made_split" in fields:
        fields["generate_split"] = fields.pop("made_split")
    if fields.get("draws") == "own":
        fields["draws"] = "seeded"
    return fields


def _plain(spec: str) -> str:
    """The specification without prefix and path, e.g. `birds` for `folder:/data/birds.csv`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", PurePath(spec).stem).strip("-") or "data"


PER_EPISODE = "per data set"
"""Shown in place of a value that differs between the data sets or numbers of shots of a trial."""


@dataclass(frozen=True)
class EpisodeSettings:
    """The settings of a preset for one data set and number of shots."""

    dataset: str
    """Specification of the data set."""
    shots: int
    """Labelled training images per class."""
    method_config: MethodConfig
    """The method's own configuration."""
    optim: OptimConfig
    """Optimiser and schedule."""
    crop_scale: float
    """Smallest share of an image's area that a random crop shows."""


@dataclass(frozen=True)
class _EpisodeShape:
    """`EpisodeSettings`, as far as they are the same for all methods."""

    dataset: str
    shots: int
    method_config: dict[str, Any]
    optim: dict[str, Any]
    crop_scale: float


@dataclass(frozen=True)
class _MemberShape:
    """A `Member`, as far as members are the same for all methods."""

    weight: float
    config: _Shape


@dataclass(frozen=True)
class _Shape:
    """A `TrialConfig`, as far as configurations are the same for all methods."""

    method: str
    preset: str
    method_config: dict[str, Any]
    optim: dict[str, Any]
    crop_scale: float = 1.0
    seed: int = 0
    before: _Shape | None = None
    fixed: bool = False
    per_episode: tuple[_EpisodeShape, ...] = ()
    members: tuple[_MemberShape, ...] = ()


@dataclass(frozen=True)
class Member:
    """One of several models whose weighted log-probabilities are added."""

    weight: float
    """The coefficient of its log-probabilities, above 0."""
    config: TrialConfig
    """How it is trained."""


@dataclass(frozen=True)
class TrialConfig:
    """One point of a space: everything that training depends on except the task."""

    method: str
    """Registry name of the method."""
    preset: str
    """`paper`, `reference` or `clean` if the configuration is exactly that preset, else
    `search`."""
    method_config: MethodConfig
    """Configuration of the method."""
    optim: OptimConfig
    """Optimiser and schedule."""
    crop_scale: float = 1.0
    """Minimum share of an image's area in a random crop; 1 trains on the test view."""
    seed: int = 0
    """Seeds the order of images, the crops and the method's own draws."""
    before: TrialConfig | None = None
    """The previous stage, whose method changes the backbone that this one is trained on."""
    fixed: bool = False
    """Whether all trials of the sweep begin with this stage as it is: what it learns is kept."""
    per_episode: tuple[EpisodeSettings, ...] = ()
    """For a preset whose settings differ between the data sets or numbers of shots of a task: the
    settings of each. The fields above then hold the general setting. See `for_episode`."""
    members: tuple[Member, ...] = ()
    """The members of an ensemble, each a single stage; the fields above are then those of the
    first. Empty for a single model."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; without the fields `per_episode` and `members` if they are empty."""
        plain = dataclasses.asdict(dataclasses.replace(self, members=()))
        plain["before"] = self.before.to_dict() if self.before else None
        plain["members"] = [
            {"weight": m.weight, "config": m.config.to_dict()} for m in self.members
        ]
        for name in ("per_episode", "members"):
            if not plain[name]:
                del plain[name]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrialConfig:
        """The inverse of `to_dict`; raises `RecordError`."""
        return cls._parse(plain)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return parsed_by(cls._parse)

    @classmethod
    def check_shape(cls, plain: object) -> None:
        """Raises `RecordError` for what is wrong whatever the method is. Loads no methods."""
        from_plain(_Shape, plain)

    @classmethod
    def _parse(cls, plain: Any) -> TrialConfig:
        """The type of `method_config` depends on `method`."""
        from trainables.core.optim import OptimConfig

        shape = from_plain(_Shape, plain)
        try:
            config = _method(shape.method).Config
        except KeyError:
            raise RecordError("method", f"must be a method's name, got '{shape.method}'") from None
        return cls(
            shape.method,
            shape.preset,
            from_field(config, plain, "method_config"),
            from_field(OptimConfig, plain, "optim"),
            shape.crop_scale,
            shape.seed,
            from_field(cls, plain, "before") if shape.before else None,
            shape.fixed,
            tuple(
                _episode_settings(config, number, s) for number, s in enumerate(shape.per_episode)
            ),
            tuple(
                from_field(Member, {f"members.{n}": m}, f"members.{n}")
                for n, m in enumerate(plain.get("members", ()))
            ),
        )

    @classmethod
    def ensemble(cls, members: tuple[Member, ...]) -> TrialConfig:
        """The ensemble of these members."""
        first = members[0].config
        return dataclasses.replace(first, preset="search", per_episode=(), members=members)

    def for_episode(self, episode: Episode) -> TrialConfig:
        """The configuration that is trained on `episode`: this one, with the settings for its data
        set and number of shots in every stage that has such settings."""
        before = self.before.for_episode(episode) if self.before else None
        members = tuple(
            dataclasses.replace(member, config=member.config.for_episode(episode))
            for member in self.members
        )
        found = dataclasses.replace(self, before=before, per_episode=(), members=members)
        for own in self.per_episode:
            if (own.dataset, own.shots) == (episode.dataset, episode.shots):
                return dataclasses.replace(
                    found,
                    method_config=own.method_config,
                    optim=own.optim,
                    crop_scale=own.crop_scale,
                )
        return found

    @property
    def epochs(self) -> int:
        """Epochs of this stage, 0 for a method with nothing to train. With settings per episode,
        the fewest of any: a report step is a share of the training, see `TrialRun`."""
        if _method(self.method).training_free:
            return 0
        return min((own.optim.epochs for own in self.per_episode), default=self.optim.epochs)

    @property
    def stages(self) -> tuple[TrialConfig, ...]:
        """All stages in the order of their training, this one last."""
        return (*(self.before.stages if self.before else ()), self)

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages that are trained."""
        return sum(stage.epochs for stage in self.stages if not stage.fixed)

    @property
    def methods(self) -> str:
        """The stages' methods, named like a space of them, e.g. `rmt+taskres`."""
        return "+".join(stage.method for stage in self.stages)

    def after(self, stage: TrialConfig) -> TrialConfig:
        """Return a copy with `stage` before its first stage."""
        return dataclasses.replace(self, before=self.before.after(stage) if self.before else stage)

    def seeded(self, seed: int) -> TrialConfig:
        """Return a copy with this seed in all stages that are not fixed."""
        if self.fixed:
            return self
        before = self.before.seeded(seed) if self.before else None
        return dataclasses.replace(self, seed=seed, before=before)

    def flat(self) -> dict[str, object]:
        """Field -> value without nesting, as a person reads it in a table of parameters;
        `PER_EPISODE` for a value that differs between episodes."""
        found = dict(vars(self))
        for name in ("method_config", "optim", "before", "per_episode", "members"):
            del found[name]
        found = vars(self.method_config) | vars(self.optim) | found
        for own in self.per_episode:
            values = vars(own.method_config) | vars(own.optim) | {"crop_scale": own.crop_scale}
            for name, value in values.items():
                if value != found[name]:
                    found[name] = PER_EPISODE
        before = self.before.flat() if self.before else {}
        return found | {f"before.{name}": value for name, value in before.items()}

    def fingerprint(self) -> str:
        """Return a hex digest of the configuration."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def problems(self) -> list[str]:
        """Return every error of method and optimiser."""
        found = self.before.problems() if self.before else []
        found += [*self.method_config.problems(), *self.optim.problems()]
        for own in self.per_episode:
            found += [*own.method_config.problems(), *own.optim.problems()]
        for member in self.members:
            found += member.config.problems()
        found = list(dict.fromkeys(found))
        if self.before and not _method(self.before.method).changes_backbone:
            from trainables.methods.registry import METHODS

            able = ", ".join(n for n, method in METHODS.items() if method.changes_backbone)
            found.append(
                f"a stage before another must change the backbone, and '{self.before.method}' does "
                f"not: use one of {able}, or make it the last"
            )
        if self.before and self.fixed and not self.before.fixed:
            found.append(
                "a fixed stage can follow only fixed ones: fix those before it, or let it vary"
            )
        if not 0 < self.crop_scale <= 1:
            found.append(f"crop_scale must be in (0, 1], got {self.crop_scale}: use e.g. 0.5")
        return found


def _episode_settings(
    config: type[MethodConfig], number: int, shape: _EpisodeShape
) -> EpisodeSettings:
    """Parse the settings at a place of `per_episode`; raises `RecordError`."""
    from trainables.core.optim import OptimConfig

    plain = vars(shape)
    try:
        return EpisodeSettings(
            shape.dataset,
            shape.shots,
            from_field(config, plain, "method_config"),
            from_field(OptimConfig, plain, "optim"),
            shape.crop_scale,
        )
    except RecordError as error:
        raise error.inside(f"per_episode[{number}]") from None


def _method(name: str) -> type[Method]:
    from trainables.methods.registry import METHODS  # which loads torch

    return METHODS[name]
