"""One trial from its first step to its last, without Ray: every seed of the task, in parts.

A trial is cut into at most ten parts. After each it reports once, and may be stopped, saved and
continued. A report's step counts parts, so that trials with different numbers of epochs are
compared at the same share of their budget.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainables.trainer import Trainer
from trainables.trial import TaskSpec, TrialConfig
from trainables.workbench import Workbench

PARTS = 10
"""Reports a trial makes at most, when all its seeds train side by side."""
CHECKPOINT = "checkpoint.safetensors"
_FORMAT = {"format": "few-shot-checkpoint", "format_version": "1"}


@dataclass(frozen=True)
class Report:
    """What a trial says after a part."""

    step: int
    """Parts done, from 1."""
    value: float
    """The objective so far: mean `val/accuracy` over the seeds that have been trained."""
    rows: tuple[dict[str, float], ...]
    """One row of metrics per epoch of this part; `epoch` among them."""
    finished: bool
    """Whether the whole budget has been trained."""
    metrics: dict[str, float]
    """The latest row, without `epoch`, and the forecast made before training."""


class TrialRun:
    """All cells (few-shot seeds) of a trial.

    Side by side (the default) every part advances every cell by a tenth of its epochs, and the
    reported value is the mean over cells. In sequence, a part is one whole cell, and the value is
    that cell's: what a paired test over cells wants to see.
    """

    def __init__(
        self, config: TrialConfig, task: TaskSpec, bench: Workbench, in_sequence: bool = False
    ) -> None:
        self.config, self.task, self.in_sequence = config, task, in_sequence
        self.cells = [Trainer(config, bench, task.dataset, task.shots, s) for s in task.seeds]
        self.step = 0
        self._values: list[float] = []

    @property
    def steps(self) -> int:
        """How many reports there will be."""
        if self.in_sequence:
            return len(self.cells)
        stride = max(1, math.ceil(self.cells[0].epochs / PARTS))
        return max(1, math.ceil(self.cells[0].epochs / stride))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.step >= self.steps

    def warnings(self) -> list[str]:
        """What the user should know before it trains."""
        return self.cells[0].method.warnings()

    def advance(self) -> Report:
        """Train the next part; raises `NonFiniteError`."""
        if self.in_sequence:
            cell = self.cells[self.step]
            rows = [cell.run_epoch() | {"epoch": _epoch(self, cell)} for _ in range(cell.epochs)]
            rows = rows or [cell.validate() | {"epoch": float(self.step)}]
        else:
            stride = max(1, math.ceil(self.cells[0].epochs / PARTS))
            rows = []
            for _ in range(min(stride, self.cells[0].epochs - self.cells[0].epoch)):
                rows.append(_mean([cell.run_epoch() for cell in self.cells]))
                rows[-1]["epoch"] = float(self.cells[0].epoch)
            rows = rows or [_mean([cell.validate() for cell in self.cells]) | {"epoch": 0.0}]
        self.step += 1
        value = rows[-1]["val/accuracy"]
        self._values.append(value)
        latest = {k: v for k, v in rows[-1].items() if k != "epoch"}
        metrics = _mean([cell.method.forecast() for cell in self.cells]) | latest
        if self.in_sequence:
            metrics["val/accuracy"] = sum(self._values) / len(self._values)
        return Report(self.step, value, tuple(rows), self.finished, metrics)

    def save(self, path: Path) -> None:
        """Write everything that continuing needs: to a temporary name, then renamed.

        One safetensors file; its metadata carries the configuration's fingerprint.
        """
        tensors, cells = {}, []
        for index, cell in enumerate(self.cells):
            cell_tensors, plain = cell.state()
            tensors |= {f"{index}/{key}": t.contiguous() for key, t in cell_tensors.items()}
            cells.append(plain)
        plain = {"step": self.step, "values": self._values, "cells": cells}
        metadata = _FORMAT | {"run": json.dumps(plain), "config": self._identity()}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, path: Path) -> bool:
        """Continue from `save`. False, and nothing changed, where there is no usable file:
        none, a damaged one, or one of another configuration."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("config") != self._identity():
                    return False
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return False
        plain: dict[str, Any] = json.loads(metadata["run"])
        for index, cell in enumerate(self.cells):
            prefix = f"{index}/"
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            cell.load_state(own, plain["cells"][index])
        self.step, self._values = plain["step"], plain["values"]
        return True

    def save_artifacts(self, folder: Path) -> list[Path]:
        """What was learned: `artifact.safetensors`, or one file a seed where there are several."""
        paths = []
        for seed, cell in zip(self.task.seeds, self.cells, strict=True):
            tensors, metadata = cell.method.artifact()
            suffix = f"-seed{seed}" if len(self.cells) > 1 else ""
            paths.append(folder / f"artifact{suffix}.safetensors")
            save_file({k: t.contiguous() for k, t in tensors.items()}, paths[-1], metadata)
            paths[-1].chmod(0o644)
        return paths

    def _identity(self) -> str:
        mode = "sequence" if self.in_sequence else "side-by-side"
        return f"{self.config.fingerprint()}/{self.task}/{mode}"


def _epoch(run: TrialRun, cell: Trainer) -> float:
    return float(run.step * cell.epochs + cell.epoch)


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
