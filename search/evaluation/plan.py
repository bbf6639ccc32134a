"""What an evaluation consists of: the draws, the models of each, and the reads of test splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from search.core.config import SweepConfig
from search.core.results import Result
from search.core.task import FreshDraws, evaluation_sets, fresh_draws, same_training_sets
from search.evaluation.examples import MOST
from search.evaluation.record import Label
from search.evaluation.workers import Candidate, SplitJob
from search.selection.record import Selection
from trainables.data.registry import DataSource
from trainables.fixed import training_key
from trainables.methods.base import Tower
from trainables.presets import preset_trial, task_facts
from trainables.trial import Episode, TaskSpec, TrialConfig

_VERSION = 2  # of what an evaluation is: another number, and all are made again


@dataclass(frozen=True)
class SweepFacts:
    """What the evaluation needs to know of a sweep that can start."""

    config: SweepConfig
    """Its configuration."""
    source: DataSource
    """The task's data, opened."""
    tower: Tower
    """Family of the image tower."""
    fingerprints: dict[str, str]
    """Fingerprints of the backbone and of the few-shot pools."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated."""

    selection: Selection
    """What the result consists of."""
    winner: TrialConfig
    """Its configuration."""
    draws: FreshDraws
    """The draws."""
    task: TaskSpec
    """The sweep's task, on these draws."""
    first: dict[Episode, Episode]
    """The first episode with the same training images, for each; see `same_training_sets`."""
    candidates: tuple[Candidate, ...]
    """Every model of every episode."""

    def trained(self, candidate: Candidate) -> Candidate:
        """The same model, with the episode that it is really trained on: the first with the same
        training images. The zero-shot model is the same on every draw."""
        if candidate.label == "zero-shot":
            return replace(candidate, episode=_zero_shot_episode(self.task, candidate.episode))
        return replace(candidate, episode=self.first[candidate.episode])

    @property
    def inputs(self) -> str:
        """Digest of everything that the evaluation is made from, as far as it can be known without
        reading test data."""
        facts = {
            "version": _VERSION,
            "winner": self.selection.trial,
            "draws": [self.draws.seeds, self.draws.requested],
            "task": self.task.to_dict() | {"skip_unreadable": None},
            "models": [(c.label, repr(c.episode), c.key) for c in self.candidates],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def plan_evaluation(
    results: Mapping[int, Result], facts: SweepFacts, selection: Selection
) -> EvaluationPlan:
    """The evaluation of a sweep's result."""
    config = facts.config
    winner = selection.config(results, general_zero_shot(facts))
    draws, task, first = _drawn(facts)
    candidates = []
    for episode in task.episodes:
        configs = _configs(facts, episode, winner)
        for label, trial in configs.items():
            trained = _zero_shot_episode(task, episode) if label == "zero-shot" else first[episode]
            stages = len(trial.stages) if label == "start" else 0
            whole = configs["winner"] if label == "start" else trial
            key = _key(facts, whole, trained)
            candidates.append(Candidate(label, episode, trial.to_dict(), key, stages))
    if config.trials == 1 and _is_paper(candidates):
        # A single training of the paper's setting: a second row would repeat the first.
        candidates = [c for c in candidates if c.label != "paper"]
    return EvaluationPlan(selection, winner, draws, task, first, tuple(candidates))


def paper_trainings(facts: SweepFacts) -> list[Candidate]:
    """The trainings of the paper's setting, which an evaluation needs whatever the winner is."""
    _, task, first = _drawn(facts)
    found = []
    for episode in dict.fromkeys(first[episode] for episode in task.episodes):
        trial = _paper(facts, episode).seeded(facts.config.seed)
        key = _key(facts, trial, episode)
        found.append(Candidate("paper", episode, trial.to_dict(), key))
    return found


def _paper(facts: SweepFacts, episode: Episode) -> TrialConfig:
    return facts.config.paper(task_facts(facts.config.task, facts.source, facts.tower, episode))


def _drawn(facts: SweepFacts) -> tuple[FreshDraws, TaskSpec, dict[Episode, Episode]]:
    """The draws of an evaluation, the task on these, and `EvaluationPlan.first`."""
    config = facts.config
    draws = fresh_draws(config.task, facts.source, config.eval_seeds)
    task = replace(config.task, seeds=draws.seeds)
    return draws, task, same_training_sets(task, facts.source)


def _key(facts: SweepFacts, trial: TrialConfig, episode: Episode) -> str:
    return training_key(trial, episode, facts.source, facts.fingerprints["backbone"])


def _is_paper(candidates: Sequence[Candidate]) -> bool:
    """Whether the result is the paper's setting in every episode."""
    keys = {(c.label, c.episode): c.key for c in candidates}
    return all(keys["paper", c.episode] == c.key for c in candidates if c.label == "winner")


def _configs(facts: SweepFacts, episode: Episode, winner: TrialConfig) -> dict[Label, TrialConfig]:
    """The models of an episode. The papers set some things per data set and number of shots, and so
    does the paper's setting."""
    config = facts.config
    about = task_facts(config.task, facts.source, facts.tower, episode)
    paper = _paper(facts, episode)
    start = config.init_from.stage if config.init_from else winner.before
    return {
        "zero-shot": _zero_shot(preset_trial("zero-shot", "paper", about), paper),
        **({"start": _unfixed(start)} if start else {}),
        "paper": paper.seeded(config.seed),
        "winner": winner,
    }


def general_zero_shot(facts: SweepFacts) -> TrialConfig:
    """The zero-shot model of the whole task."""
    config = facts.config
    about = task_facts(config.task, facts.source, facts.tower)
    paper = config.paper(about)
    return replace(_zero_shot(preset_trial("zero-shot", "paper", about), paper), per_episode=())


def _zero_shot(single: TrialConfig, paper: TrialConfig) -> TrialConfig:
    """Zero-shot CLIP with the prompts that the method's paper compares itself with: a template
    ensemble if the method starts from one, else a single prompt per data set."""
    prompts = paper.method_config.prompts
    if prompts == "photo":  # start of learned prompts; papers compare with the data set's prompt
        return single
    return replace(single, method_config=replace(single.method_config, prompts=prompts))


def _unfixed(stage: TrialConfig) -> TrialConfig:
    before = _unfixed(stage.before) if stage.before else None
    return replace(stage, before=before, fixed=False)


def _zero_shot_episode(task: TaskSpec, episode: Episode) -> Episode:
    """The episode that represents a data set: that of the most shots and the first draw, of
    which examples are taken."""
    return replace(episode, shots=max(task.shots), seed=task.seeds[0])


def split_jobs(plan: EvaluationPlan) -> list[SplitJob]:
    """One read per test split and episode, with the models that are trained on the episode."""
    sets = evaluation_sets(plan.task)
    most = max(1, MOST // sum(len(split.halves) for split in sets))
    jobs = []
    for split in sets:
        models = [c for c in plan.candidates if c.episode.dataset in split.sources]
        shown = _zero_shot_episode(plan.task, models[0].episode)  # examples are taken of its models
        pair = {c.label: c.key for c in models if c.episode == shown}
        by_episode: dict[Episode, dict[tuple[str, int], Candidate]] = {}
        for model in (plan.trained(c) for c in models):
            by_episode.setdefault(model.episode, {}).setdefault(model.key, model)
        for episode, distinct in by_episode.items():
            keys, places = list(distinct), None
            if episode == shown:
                places = keys.index(pair["zero-shot"]), keys.index(pair["winner"])
            jobs.append(SplitJob(split, tuple(distinct.values()), most, places))
    return jobs
