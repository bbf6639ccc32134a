"""What MLflow's page shows of a sweep beside its numbers: a description, and a view of its trials.

The view is one of those that the page saves itself under "Views": a tag of the experiment, which
says what is filtered, sorted and shown. A link opens the page with it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import zlib
from collections.abc import Mapping, Sequence

from search.core.config import SweepConfig
from search.core.results import Result
from search.core.task import described
from search.evaluation.record import LABELS, Evaluation, Label
from search.evaluation.statistics import summary
from search.tracking.markdown import plain, table

DESCRIPTION = "mlflow.note.content"
COLUMNS = "search.columns"
"""Tag of the sweep's own run: the parameters that its trials differ in, as a JSON list."""
_MOST_COLUMNS = 10
_METRICS = ("val/accuracy",)
_VIEW = "mlflow.sharedViewState."


def description(
    config: SweepConfig, best: Result | None = None, evaluation: Evaluation | None = None
) -> str:
    """Markdown for the sweep's own run: what it is, what it found, what to do with it."""
    title = f"{plain(config.space)} on {plain(described(config.task))}"
    rows: dict[str, str] = {}
    if best is not None and best.value is not None:
        rows["Best trial"] = f"{best.number}: validation accuracy {_percent(best.value)}"
    if evaluation is not None:
        for label in evaluation.labels:
            rows[f"Test accuracy, {LABELS[label]}"] = _figure(evaluation, label)
        rows["Gain"] = " ".join(gain.sentence() for gain in evaluation.gains)
        if evaluation.draws_note:
            rows["Draws"] = evaluation.draws_note
    where = "" if config.storage == SweepConfig().storage else _option(config.public().storage)
    commands = {
        "Go on": f"python -m search.run --resume {config.name}{where}",
        "Report": f"python -m search.report {config.name}{where}",
        "Export the winner": f"python -m search.export {config.name}{where}",
    }
    rows |= {key: f"`{command.replace('`', '')}`" for key, command in commands.items()}
    return f"{title}\n\n{table(rows)}"


def columns(values: Mapping[str, set[str]]) -> str:
    """The tag `COLUMNS`, from all values of each parameter."""
    varied = [name for name, found in values.items() if len(found) > 1 and name not in _IDENTITY]
    return json.dumps(varied[:_MOST_COLUMNS])


def saved_view(
    identity: str, sweep: str, identity_tag: str, parameters: Sequence[str], milliseconds: int
) -> tuple[str, str]:
    """The experiment's tag, name and value, that makes a view of one sweep: its trials, the best
    first, with these parameters."""
    quote = '"' if "'" in identity else "'"
    state = {
        "searchFilter": f"tags.`{identity_tag}` = {quote}{identity}{quote}",
        "orderByKey": f"metrics.`{_METRICS[0]}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in _METRICS),
            *(f"params.`{name}`" for name in parameters),
            "tags.`search.state`",
        ],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {
        "name": sweep,
        "createdAt": milliseconds,
        "updatedAt": milliseconds,
        "state": f"deflate;{packed}",
    }
    return f"{_VIEW}{_key(identity)}", json.dumps(view)


def page(experiment: str, identity: str) -> str:
    """Where the view is, behind the server's address."""
    return (
        f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
        f"&viewStateShareKey={_key(identity)}"
    )


def _key(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


_IDENTITY = frozenset({"preset", "seed", "method", "fixed"})  # no column: they are tags, or one


def _figure(found: Evaluation, label: Label) -> str:
    figure = summary(found.figure(label))
    text = _percent(figure.mean)
    if figure.deviation is not None:
        text += f", deviation {100 * figure.deviation:.1f} over {found.draws}"
    gain = found.gain(label, "zero-shot")
    if gain is not None:
        interval = gain.over_draws or gain.over_images
        within = f" ± {100 * ((interval.high or 0.0) - interval.mean):.1f}"
        text += f"; {100 * gain.mean:+z.1f}{within} over zero-shot"
    return text


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _option(storage: str) -> str:
    return f" --storage {shlex.quote(storage)}"
