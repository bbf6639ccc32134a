"""Describe a sweep without running it: its settings, its first trials, its cost.

Nothing is written, neither to a folder nor to a database.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from search.core.results import counted
from search.core.samplers import STARTUP_TRIALS
from search.core.shown import described, shown_parameters
from search.core.sweep_file import sweep_text
from search.core.task import fresh_draws
from search.driver.cost_estimate import (
    Cost,
    RehearsalError,
    Size,
    draw_size,
    peak_memory,
    rehearse,
    search_sizes,
)
from search.driver.preflight import Plan
from search.ledger.ledger import Ledger, RunningTrial
from search.terminal.class_counts import task_tables, texts_of_classes
from search.terminal.progress import short
from search.terminal.ranges import search_ranges, value_words
from search.terminal.sweep_status import duration
from trainables.core.credentials import shown, without_password
from trainables.core.storage import open_storage
from trainables.methods.registry import METHODS
from trainables.report import REPORTS_PER_TRIAL
from trainables.trial import Episode, TrialConfig
from trainables.view import AUGMENTED_VIEWS

_MEMBERS = 5  # of a typical ensemble
_PRESETS = {
    "paper": " (the paper's setting)",
    "reference": " (the setting of the authors' code)",
    "clean": " (the preset clean)",
}


def first_trials(plan: Plan) -> tuple[list[RunningTrial], int]:
    """The next trials that the sweep would issue, and how many have ended.

    These are the trials whose parameters do not depend on results that are still unknown: those of
    a sampler's random start, or else the next one.
    """
    config = plan.config
    sweep = open_storage(config.location)
    ledger = Ledger(
        sweep,
        plan.space,
        config.sampler,
        config.pruner,
        config.seed,
        also=config.second_objective,
    )
    ended = counted(ledger.results.values(), config.trials)
    left = ledger.waiting + max(0, config.trials - ledger.issued(config.trials))
    known = len(plan.space.queue) if not plan.space.grid else config.trials
    certain = max(1, min(left, max(STARTUP_TRIALS, known) - ended))
    return ledger.preview(min(left, certain)), ended


def dry_run(plan: Plan, console: Console) -> None:
    """Print settings, first trials and estimated cost."""
    config = plan.config
    trials, ended = first_trials(plan)
    console.print(
        f"Sweep {config.name}: {config.space} on {described(config.task)}. This is a dry run: "
        "nothing is started or written.",
        style="bold",
    )
    for notice in plan.notices:
        console.print(notice, style="yellow")
    console.print(_grid("Settings", settings(plan)))
    for classes in task_tables(config.task, plan.source):
        console.print(classes)
    for line in texts_of_classes(config.task, plan.source, plan.space.first):
        console.print(line, highlight=False)
    console.print(sweep_text(config).rstrip(), soft_wrap=True)
    first = plan.space.first
    values = shown_parameters(first.to_dict(), plan.space.first_parameters)
    table = Table(box=None, pad_edge=False, title="Search space", title_justify="left")
    for heading in ("parameter", "range", "trial 0" if plan.space.queue else "base"):
        table.add_column(heading, overflow="fold")
    for name, (words, always) in search_ranges(plan.space).items():
        value = value_words(values.get(name, ""))
        table.add_row(name, words + ("" if always else " (not in every trial)"), value)
    console.print(table)
    for live in trials:
        why = _PRESETS.get(live.config.preset, "")
        chosen = short(live.parameters, live.config.to_dict())
        console.print(f"trial {live.number:>3}{why}  {chosen}")
    more = max(0, config.trials - ended - len(trials))
    if more:
        console.print(
            f"{more} more trials follow; their parameters depend on the results of these.",
            style="dim",
        )
    _print_estimate(plan, trials, more, console)


def settings(plan: Plan) -> dict[str, str]:
    """Return every setting, with defaults filled in."""
    config = plan.config.public()
    plain = config.to_dict()
    nested = plain.pop("task"), plain.pop("settings")
    rows = {key: _text(value) for part in (plain, *nested) for key, value in part.items()}
    rows |= {f"fingerprint, {key}": value for key, value in plan.fingerprints.items()}
    place = plan.placement
    where = (
        "decided by the cluster"
        if place is None
        else (
            f"{place.slots} trials at a time on the {'GPU' if place.device == 'cuda' else 'CPU'}, "
            f"{place.cpus:g} cores and {place.gpus:g} GPUs each"
        )
    )
    fresh = ", ".join(map(str, fresh_draws(config.task, plan.source, config.eval_seeds).seeds))
    return rows | {
        "folder": without_password(config.location),
        "tracking_uri": shown(plan.tracking_uri),
        "placement": where,
        "validation images": str(plan.record().val_images),
        "fresh draws": f"{fresh} (for the test figures)",
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value in (None, "", {}, []):
        return "-"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _grid(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _print_estimate(
    plan: Plan, trials: Sequence[RunningTrial], more: int, console: Console
) -> None:
    config, place = plan.config, plan.placement
    device = place.device if place else "cpu"
    if not trials:
        console.print("Estimate: none, as no trial is left to run.")
        return
    if place is None and config.device != "cpu":
        console.print(
            "Estimate: none, because trials run on the cluster at --address. Run this command "
            "there without --address."
        )
        return
    threads = max(1, math.floor(config.cpus_per_trial))
    try:
        with console.status("Timing some steps"):
            cost = rehearse(plan.space.first, config.task, config.data, device, threads)
    except RehearsalError as error:
        console.print(
            f"Estimate: none, because the steps could not be timed ({error}).", style="yellow"
        )
        return
    for line in estimate(plan, [live.config for live in trials], more, cost):
        console.print(line)


def _seconds(
    cost: Cost,
    config: TrialConfig,
    episodes: Sequence[Episode],
    sizes: Sequence[Size],
    validations: int | None = None,
) -> float:
    """Seconds of a trial, with the settings of each of its episodes."""
    pairs = zip(episodes, sizes, strict=True)
    return sum(
        cost.seconds(config.for_episode(episode), [size], validations) for episode, size in pairs
    )


def estimate(plan: Plan, configs: Sequence[TrialConfig], more: int, cost: Cost) -> list[str]:
    """Estimate time and memory of the trials `configs` and of `more` like them, in sentences."""
    config, place = plan.config, plan.placement
    slots = place.slots if place else config.max_concurrent or 1
    sizes = [draw_size(plan.source, episode) for episode in config.task.episodes]
    often = None if config.task.validation == "held-out" else REPORTS_PER_TRIAL
    searched = search_sizes(config.task, plan.source)
    each = [_seconds(cost, c, config.task.episodes, searched, often) for c in configs]
    mean = sum(each) / len(each)
    # The backbone encodes the augmented views of a crop scale once, for all trials that share it.
    views = cost.encode * sum(size.train for size in sizes) * AUGMENTED_VIEWS * _scales(configs)
    timed = [Size(cost.images, cost.val_images)]
    others = max(0.0, cost.preparation(sizes) - cost.preparation(timed))
    search = cost.opened + others + views + (sum(each) + more * mean) / slots
    share = ""
    if views > search / 2:
        share = (
            f", of which {duration(views)} encode the {AUGMENTED_VIEWS} augmented views of each "
            "training image"
        )
    steps = sum(stage.steps for stage in cost.stages)
    what = f"{steps} steps of" if steps else "the fit of"
    memory, gpu_memory = cost.trial_memory(sizes)
    total = slots * memory + peak_memory()
    gpu = f", {slots * gpu_memory / 2**30:.1f} GiB of GPU memory" if gpu_memory else ""
    of_episodes = f" of {len(sizes)} episodes" if len(sizes) > 1 else ""
    return [
        f"Estimate of time: {duration(search)} for the trials, if none is stopped early "
        f"({duration(mean)} each, {slots} at a time){share}, and "
        f"{duration(evaluation_seconds(plan, cost, slots))} for training the winner and the "
        "paper's setting on fresh draws. Starting Ray and reading test images take additional "
        "time.",
        f"Estimate of memory: {memory / 2**30:.1f} GiB per trial{of_episodes}, "
        f"{total / 2**30:.1f} GiB in all{gpu}. Ray's own processes take additional memory.",
        f"Measured just now: {what} the paper's setting on {cost.images} of the real training "
        "images with the real backbone, in a process like a worker's. Assumed: a step of other "
        "settings costs as much with as many images, and concurrent trials do not slow each other "
        "down.",
    ]


def evaluation_seconds(plan: Plan, cost: Cost, slots: int) -> float:
    """Seconds for training the winner and the paper's setting on every fresh draw."""
    config, paper = plan.config, plan.space.paper
    seeds = fresh_draws(config.task, plan.source, config.eval_seeds).seeds
    episodes = replace(config.task, seeds=seeds).episodes
    sizes = [draw_size(plan.source, episode) for episode in episodes]
    views = cost.encode * sum(size.train for size in sizes) * AUGMENTED_VIEWS * _scales([paper])
    # The winner is unknown; assume that each of its members costs as much as the paper's setting.
    models = 1 + (_MEMBERS if config.select == "ensemble" else 1)
    return (
        models * _seconds(cost, paper, episodes, sizes) + cost.preparation(sizes) + views
    ) / slots


def _scales(configs: Sequence[TrialConfig]) -> int:
    """Return the number of distinct crop scales, each of which needs separate augmented views."""
    first = [config.stages[0] for config in configs]
    return len(
        {
            stage.crop_scale
            for stage in first
            if METHODS[stage.method].input_kind == "features" and stage.crop_scale < 1
        }
    )
