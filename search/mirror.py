"""What of a sweep the tracker is told: the one place that decides names of runs' contents."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from search.ledger import Ledger, Live, Result
from search.tracking import Row, Tracker
from trainables.trainable import Message


class Mirror:
    """Passes trials on to a tracker."""

    def __init__(self, tracker: Tracker, fingerprints: Mapping[str, str]) -> None:
        self._tracker, self._fingerprints = tracker, fingerprints
        self._warnings: dict[int, str] = {}

    def started(self, live: Live) -> None:
        """Resolved parameters, with the preset they are, if any, and what they were run on."""
        config = live.config
        tags = {"preset": config.preset, "method": config.method, "search.state": "RUNNING"}
        tags |= {f"fingerprint.{key}": value for key, value in self._fingerprints.items()}
        self._tracker.start_trial(live.number, config.flat(), tags)

    def heard(self, message: Message) -> None:
        """Every epoch's metrics, in one call a report; a forecast stands at epoch 0."""
        if message.warnings:
            self._warnings[message.number] = " ".join(message.warnings)
        if message.forecast:
            self._tracker.log(message.number, [Row(0, time.time(), message.forecast)])
        if message.report is None:
            return
        rows = [
            Row(
                int(row["epoch"]),
                row["time"],
                {key: value for key, value in row.items() if key not in ("epoch", "time")},
            )
            for row in message.report.rows
        ]
        self._tracker.log(message.number, rows)

    def ended(self, result: Result, ledger: Ledger) -> None:
        """State, final figures, artifact and configuration."""
        folder = ledger.trial_folder(result.number)
        config = folder / "config.json"
        config.write_text(json.dumps(result.config, indent=1) + "\n", encoding="utf-8")
        tags = {"search.reason": result.reason} if result.reason else {}
        if warning := self._warnings.pop(result.number, ""):
            tags["search.warning"] = warning
        metrics = {"train/seconds": result.train_seconds}
        if result.value is not None:
            metrics["objective"] = result.value
        self._tracker.finish_trial(
            result.number, result.state, tags, metrics, [config, *_artifacts(folder, result)]
        )


def _artifacts(folder: Path, result: Result) -> list[Path]:
    return sorted(folder.glob("artifact*.safetensors")) if result.state == "COMPLETE" else []
