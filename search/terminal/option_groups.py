"""The options of `search.run`, in the groups and the order of its help text."""

from __future__ import annotations

from collections.abc import Mapping

GROUPS: Mapping[str, Mapping[str, str]] = {
    "task": {
        "space": "NAME",
        "plugin": "FILE.py",
        "init_from": "SWEEP",
        "datasets": "NAME,...",
        "data": "FOLDER",
        "backbone": "SPEC",
        "shots": "N,...",
        "seeds": "N,N,...",
        "protocol": "NAME",
        "per_task": "",
        "test_folds": "N",
        "draws": "RULE",
        "shots_file": "PATTERN",
        "class_names": "FILE",
        "prompt": "TEXT",
        "generate_split": "",
        "skip_unreadable": "",
        "validation": "NAME",
    },
    "settings and ranges": {
        "preset": "NAME",
        "set": "FIELD=VALUE",
        "range": "FIELD=LOW:HIGH",
        "choice": "FIELD=VALUE,...",
        "grid": "FIELD=VALUE,...",
        "enqueue": "FILE",
    },
    "search": {
        "trials": "N",
        "sampler": "NAME",
        "objective": "NAME",
        "pruner": "NAME",
        "second_objective": "METRIC:DIRECTION",
        "select": "ensemble|best|N",
        "time_budget": "TIME",
        "retry_failed": "",
        "seed": "N",
        "eval_seeds": "N",
    },
    "storage and tracking": {
        "name": "NAME",
        "resume": "NAME",
        "storage": "PLACE",
        "study_storage": "URL",
        "keep_artifacts": "WHOSE",
        "no_report": "",
        "notify": "URL",
        "register": "MODEL",
        "tracking_uri": "URI",
        "experiment": "NAME",
    },
    "execution": {
        "address": "HOST:PORT",
        "device": "NAME",
        "cpus_per_trial": "N",
        "gpus_per_trial": "N",
        "max_concurrent": "N",
        "checkpoint_seconds": "N",
        "dry_run": "",
    },
}
"""Option groups: each option with the placeholder of its value."""
COMMON = frozenset(
    {
        *("space", "datasets", "data", "backbone", "shots", "init_from"),
        *("preset", "set", "range", "choice", "grid"),
        *("trials", "select", "time_budget", "seed"),
        *("name", "resume", "storage", "tracking_uri"),
        *("address", "device", "gpus_per_trial", "max_concurrent", "dry_run"),
    }
)
"""Options that `--help` shows; `--help-all` shows all."""
