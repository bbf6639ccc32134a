"""What MLflow's page shows of a sweep besides its numbers: a description, and views of its trials.

The views are like those that the page itself saves under "Views": a tag of the experiment, which
holds what is filtered, sorted and shown. A link opens the page with one.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence

from search.core.annotations import Annotations
from search.core.config import SweepConfig
from search.core.results import Result
from search.core.shown import described
from search.evaluation.record import LABELS, Evaluation, Label
from search.evaluation.statistics import summary

DESCRIPTION = "mlflow.note.content"
COLUMNS = "search.columns"
"""Tag of the sweep's own run: the parameters in which its trials differ, as a JSON list."""
_MOST_COLUMNS = 10
ACCURACY = "val/accuracy"
"""Metric that every view shows."""
_VIEW = "mlflow.sharedViewState."


def description(
    config: SweepConfig, best: Result | None = None, evaluation: Evaluation | None = None
) -> str:
    """Markdown for the sweep's own run: its task, its best results, and useful commands."""
    title = f"{plain(config.space)} on {plain(described(config.task))}"
    rows: dict[str, str] = {}
    if best is not None and best.accuracy is not None:
        rows["Best trial"] = f"{best.number}: validation accuracy {_percent(best.accuracy)}"
    if evaluation is not None:
        for label in evaluation.labels:
            rows[f"Test accuracy, {LABELS[label]}"] = _figure(evaluation, label)
        rows["Gain"] = " ".join(gain.sentence() for gain in evaluation.gains)
        if evaluation.draws_note:
            rows["Draws"] = evaluation.draws_note
    storage = shlex.quote(config.public().storage)
    where = "" if config.storage == SweepConfig().storage else f" --storage {storage}"
    commands = {
        "Resume": f"python -m search.run --resume {config.name}{where}",
        "Report": f"python -m search.report {config.name}{where}",
        "Export the winner": f"python -m search.export {config.name}{where}",
    }
    rows |= {key: f"`{command.replace('`', '')}`" for key, command in commands.items()}
    return f"{title}\n\n{table(rows)}"


def annotated(tags: Mapping[str, str], found: Annotations) -> dict[str, str]:
    """The tags of the sweep's own run with the user's; the user's note precedes the description."""
    note = {DESCRIPTION: f"{found.note}\n\n{tags[DESCRIPTION]}"} if found.note else {}
    return {**found.tags, **tags, **note}


def columns(values: Mapping[str, set[str]]) -> str:
    """The value of the tag `COLUMNS`, from all values of each parameter."""
    varied = [name for name, found in values.items() if len(found) > 1 and name not in _IDENTITY]
    return json.dumps(varied[:_MOST_COLUMNS])


def saved_views(
    identity: str,
    sweep: str,
    identity_tag: str,
    state_tag: str,
    parameters: Sequence[str],
    milliseconds: int,
    ranked_by: str = ACCURACY,
) -> dict[str, str]:
    """The experiment's tags, by name, that make two views of one sweep: all its trials, and those
    that are complete. Both show these parameters and how a trial ended, the best trial first, by
    the metric `ranked_by`."""
    quote = '"' if "'" in identity else "'"
    of_sweep = f"tags.`{identity_tag}` = {quote}{identity}{quote}"
    complete = f"{of_sweep} AND tags.`{state_tag}` = 'COMPLETE'"
    tags = {}
    for key, name, query in (
        (identity, sweep, of_sweep),
        (f"{identity}/complete", f"{sweep}: complete trials", complete),
    ):
        state = {
            "searchFilter": query,
            "orderByKey": f"metrics.`{ranked_by}`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": [
                f"tags.`{state_tag}`",
                *(f"metrics.`{name}`" for name in dict.fromkeys((ranked_by, ACCURACY))),
                *(f"params.`{name}`" for name in parameters),
            ],
        }
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        view = {
            "name": name,
            "createdAt": milliseconds,
            "updatedAt": milliseconds,
            "state": f"deflate;{packed}",
        }
        tags[f"{_VIEW}{_key(key)}"] = json.dumps(view)
    return tags


def page(experiment: str, identity: str) -> str:
    """The path, on the server, of the view of all trials."""
    return (
        f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
        f"&viewStateShareKey={_key(identity)}"
    )


def _key(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


_IDENTITY = frozenset({"preset", "seed", "method", "fixed"})  # not columns: tags, or constant


def _figure(found: Evaluation, label: Label) -> str:
    text = _percent(summary(found.figure(label)).mean)
    if (deviation := found.deviation(label)) is not None:
        text += f", deviation {100 * deviation:.1f} over {found.draws}"
    gain = found.gain(label, "zero-shot")
    if gain is not None:
        interval = gain.over_draws or gain.over_images
        within = f" ± {100 * ((interval.high or 0.0) - interval.mean):.1f}"
        text += f"; {100 * gain.mean:+z.1f}{within} over zero-shot"
    return text


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def plain(text: str) -> str:
    """The text on one line, with everything escaped that Markdown or HTML would interpret."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(" ".join(text.split())))


def table(rows: Mapping[str, str]) -> str:
    """Two columns without a heading; keys and values are Markdown."""
    lines = (f"| {key} | {value} |" for key, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])
