"""One run in MLflow: what it holds, and how the rest is sent."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search.tracking.content import DataInput, Row

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

INFINITE = "search.infinite_metrics"
TAG_LENGTH = 8000  # characters that MLflow keeps
_PARAM_LENGTH = 6000
_NAME_LENGTH = 250
_CONTEXT = "mlflow.data.context"


@dataclass
class MlflowRun:
    """A run, with what this process knows to be in it."""

    client: MlflowClient
    """MLflow's client."""
    id: str
    """MLflow's id."""
    status: str
    """RUNNING, FINISHED, KILLED or FAILED."""
    is_new: bool = False
    """Whether this process has just created it."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags by name."""
    params: dict[str, str] = field(default_factory=dict)
    """Parameters by name."""
    _inputs: set[tuple[str, str]] = field(default_factory=set)
    _last: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Last step and its value, by metric."""
    _steps: dict[str, set[int]] = field(default_factory=dict)
    """All steps of the metrics whose history was read."""

    @classmethod
    def read(cls, client: MlflowClient, run_id: str) -> MlflowRun:
        """The run with this id."""
        run: Run = client.get_run(run_id)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        return cls(
            client,
            run_id,
            run.info.status,
            tags=dict(run.data.tags),
            params=dict(run.data.params),
            _inputs={(given.dataset.name, given.dataset.digest) for given in inputs},
            # The store orders a metric's points by step, then by time.
            _last={m.key: (m.step, m.value) for m in run.data.to_proto().metrics},
        )

    def send(
        self,
        tags: Mapping[str, str],
        params: Mapping[str, object] | None = None,
        rows: Sequence[Row] = (),
        final: Row | None = None,
    ) -> bool:
        """Send what the run lacks, by one `log_batch`, which MLflow's client splits if it is too
        long; return whether there was anything. A step that the run holds stays, unless it is
        `final`'s."""
        from mlflow.entities import Metric, Param, RunTag

        metrics: dict[tuple[str, int], Metric] = {}
        infinite = []
        for row, name, value in _points(rows):
            # The stores keep NaN, but turn an infinity into 1.8e308, which flattens a chart.
            if math.isinf(value):
                infinite.append(f"{name}={value} at step {row.step}")
            elif (name, row.step) not in metrics and self._lacks(name, row.step):
                metrics[name, row.step] = Metric(name, value, milliseconds(row.time), row.step)
        points = list(metrics.values())
        for row, name, value in _points([final] if final else []):
            if math.isinf(value):
                infinite.append(f"{name}={value} at the end")
            elif self._last.get(name) != (row.step, value):
                points.append(Metric(name, value, milliseconds(row.time), row.step))
        wanted = texts(tags, TAG_LENGTH)
        if infinite:
            wanted[INFINITE] = ", ".join(infinite)[:TAG_LENGTH]
        new_tags = {key: value for key, value in wanted.items() if self.tags.get(key) != value}
        all_params = texts(params or {}, _PARAM_LENGTH)
        new_params = {key: v for key, v in all_params.items() if key not in self.params}
        if not (points or new_params or new_tags):
            return False
        self.client.log_batch(
            self.id,
            metrics=points,
            params=[Param(*param) for param in new_params.items()],
            tags=[RunTag(*tag) for tag in new_tags.items()],
            synchronous=True,
        )
        self.tags |= new_tags
        self.params |= new_params
        for point in points:
            self._add(point.key, point.step, point.value)
        return True

    def remove_tags(self, names: Sequence[str]) -> bool:
        """Remove the tags that the run has of these; return whether there was any."""
        found = self.tags.keys() & {*names}
        for name in sorted(found):
            self.client.delete_tag(self.id, name)
            del self.tags[name]
        return bool(found)

    def send_inputs(self, inputs: Sequence[DataInput]) -> bool:
        """Send the data sets that the run lacks; return whether there was any."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        missing = [given for given in inputs if (given.name, given.digest) not in self._inputs]
        if missing:
            self.client.log_inputs(
                self.id,
                [
                    DatasetInput(
                        Dataset(
                            name=given.name,
                            digest=given.digest,
                            source_type="local",
                            source=json.dumps({"uri": given.source}),
                            profile=json.dumps(dict(given.profile)),
                        ),
                        [InputTag(_CONTEXT, "training")],
                    )
                    for given in missing
                ],
            )
            self._inputs |= {(given.name, given.digest) for given in missing}
        return bool(missing)

    def _lacks(self, name: str, step: int) -> bool:
        """Whether the run has no point of that metric at that step."""
        if name not in self._last or self._last[name][0] < step:
            return True
        if name not in self._steps:
            history = self.client.get_metric_history(self.id, name)
            self._steps[name] = {point.step for point in history}
        return step not in self._steps[name]

    def _add(self, name: str, step: int, value: float) -> None:
        if name not in self._last or self._last[name][0] <= step:
            self._last[name] = step, value
        if name in self._steps:
            self._steps[name].add(step)


def texts(values: Mapping[str, object], length: int) -> dict[str, str]:
    """Tags or params as MLflow accepts them."""
    return {_name(key): str(value)[:length] for key, value in values.items()}


def milliseconds(seconds: float) -> int:
    """MLflow's unit of time."""
    return round(seconds * 1000)


def _points(rows: Sequence[Row]) -> Iterator[tuple[Row, str, float]]:
    for row in rows:
        for name, value in row.metrics.items():
            yield row, _name(name), float(value)


def _name(key: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w./: -]", "_", key)[:_NAME_LENGTH]
