"""The settings that a method's paper has for a task, and the facts of the task that they need."""

from __future__ import annotations

from dataclasses import replace

from trainables.data.base import FeatureRows
from trainables.data.registry import DataSource
from trainables.methods.base import Preset, TaskFacts, Tower
from trainables.methods.registry import METHODS
from trainables.trial import Episode, EpisodeSettings, TaskSpec, TrialConfig


def task_facts(
    task: TaskSpec, source: DataSource, tower: Tower, episode: Episode | None = None
) -> TaskFacts:
    """The facts about one episode, or about the whole task.

    For several data sets or numbers of shots, those of the task describe a general setting: the
    largest number of shots, and no data set's name if there are several. They contain the facts of
    each data set and number of shots.
    """
    if episode is None:
        first = replace(task, seeds=task.seeds[:1]).episodes
        each = tuple(task_facts(task, source, tower, one) for one in first)
        general = max(each, key=lambda facts: facts.shots)
        name = "" if len(task.sources) > 1 else general.dataset
        return replace(general, dataset=name, each=each if len(each) > 1 else ())
    images = source.draw(episode.dataset, episode.shots, episode.seed, episode.half).train.images
    pixels = not isinstance(images, FeatureRows)
    return TaskFacts(episode.dataset, episode.shots, len(images), tower, pixels, task.protocol)


def preset_trial(method: str, preset: Preset, facts: TaskFacts) -> TrialConfig:
    """A method's preset for a task."""
    make = METHODS[method].preset
    general = make(preset, facts)
    each = tuple(
        EpisodeSettings(own.dataset, own.shots, *make(preset, replace(own, after=facts.after)))
        for own in facts.each
    )
    differ = any((own.method_config, own.optim, own.crop_scale) != general for own in each)
    return TrialConfig(method, preset, *general, per_episode=each if differ else ())
