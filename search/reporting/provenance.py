"""Provenance of the results: settings, versions, fingerprints and reads of test splits."""

from __future__ import annotations

import platform
import shlex
import time
from importlib.metadata import version

from search.core.annotations import read_annotations
from search.core.config import SweepConfig
from search.reporting.document import Section, Table
from search.reporting.source import Source
from spaces.settings import Settings
from trainables.core.credentials import without_password
from trainables.trial import TaskSpec


def provenance_section(source: Source, several: bool = False) -> Section:
    """Build the section: settings, versions, fingerprints, seeds and every read of a test split.

    With `several`, its title and the names of its tables contain the sweep's name.
    """
    config, task = source.config, source.config.task
    facts = {
        "sweep": config.name,
        "id": source.record.id,
        "folder": without_password(source.sweep.location),
        "space": config.space,
        "data sets": ", ".join(task.datasets),
        "backbone": task.backbone,
        "protocol": task.protocol,
        "shots": ", ".join(map(str, task.shots)),
        "draws": f"{task.draws}; seeds {', '.join(map(str, task.seeds))}",
        "evaluated on": source.judged.draws if source.judged else "none yet",
        "sampler, pruner, seed": f"{config.sampler}, {config.pruner}, {config.seed}",
        "hosts": ", ".join(sorted({r.host for r in source.results.values() if r.host})) or "-",
    }
    annotations = read_annotations(source.sweep)
    if annotations.note:
        facts["note"] = annotations.note
    if annotations.tags:
        facts["tags"] = annotations.shown_tags
    versions = source.record.versions
    here = (
        f"Python {platform.python_version()}, fewshot-clip-search {version('fewshot-clip-search')}"
    )
    prints = source.record.fingerprints
    rows = list(facts.items())
    rows += [(f"{name} (at the start)", text) for name, text in versions.items()]
    rows += [("report made with", here)]
    rows += [(f"fingerprint: {name}", text) for name, text in prints.items()]
    suffix, title = (f"-{source.name}", f": {source.name}") if several else ("", "")
    headings = ("what", "value")
    settings = Table(
        f"provenance{suffix}", f"Settings and versions{title}", headings, tuple(rows), "", 2
    )
    notes = () if source.reads else ("No test split has been read.",)
    tables = (settings, *[_reads(source, suffix)] * bool(source.reads))
    return Section(f"provenance{suffix}", f"Provenance{title}", notes, tables)


def command(config: SweepConfig) -> str:
    """Return a command line with this sweep's configuration, without options at their defaults
    unless the default depends on the space."""
    task, default = config.task, SweepConfig()
    words = ["python", "-m", "search.run", "--space", config.space]
    if config.init_from is not None:  # the starting sweep defines the task
        words += ["--init-from", without_password(config.init_from.location)]
    else:
        words += _task_words(task)
    plain: dict[str, tuple[object, object]] = {
        "--trials": (config.trials, None),
        "--sampler": (config.sampler, default.sampler),
        "--pruner": (config.pruner, None),
        "--second-objective": (config.second_objective, default.second_objective),
        "--seed": (config.seed, default.seed),
        "--eval-seeds": (config.eval_seeds, default.eval_seeds),
        "--name": (config.name, None),
        "--storage": (without_password(config.storage), default.storage),
        "--data": (config.data, default.data),
    }
    for option, (value, usual) in plain.items():
        if value != usual:
            words += [option, str(value)]
    words += [word for file in config.plugin for word in ("--plugin", file)]
    return shlex.join(words + _setting_words(config.settings))


def _setting_words(settings: Settings) -> list[str]:
    """Return the options that change the space; queued trials came from a file and are omitted."""
    words = ["--preset", settings.preset] if settings.preset != Settings().preset else []
    for option, single in (("--set", settings.set), ("--range", settings.range)):
        words += [word for name, value in single.items() for word in (option, f"{name}={value}")]
    for option, several in (("--choice", settings.choice), ("--grid", settings.grid)):
        for name, values in several.items():
            texts = list(map(str, values))
            between = "|" if any("," in text for text in texts) else ","
            words += [option, f"{name}={between.join(texts)}"]
    return words


def _task_words(task: TaskSpec) -> list[str]:
    words = ["--dataset", ",".join(task.datasets)]
    if task.backbone not in task.datasets:  # a bundle is both
        words += ["--backbone", task.backbone]
    words += ["--shots", ",".join(map(str, task.shots)), "--seeds", ",".join(map(str, task.seeds))]
    if task.protocol != "few-shot":
        words += ["--protocol", task.protocol]
    if task.draws != "seeded":
        rule = "--shots-file" if task.draws.startswith("file:") else "--draws"
        words += [rule, task.draws.removeprefix("file:")]
    words += ["--generate-split"] * task.generate_split + [
        "--skip-unreadable"
    ] * task.skip_unreadable
    words += [word for prompt in task.prompt for word in ("--prompt", prompt)]
    for name, value in (("validation", task.validation), ("objective", task.objective)):
        words += [f"--{name}", value]
    return words


def _reads(source: Source, suffix: str) -> Table:
    rows = tuple(
        ("-", "this line of the record cannot be parsed", "-")
        if read is None
        else (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(read.time)),
            read.dataset,
            str(len(read.judged)),
        )
        for read in source.reads
    )
    headings = ("time (UTC)", "data set", "models judged")
    return Table(f"reads{suffix}", "Every read of a test split", headings, rows, "", 2)
