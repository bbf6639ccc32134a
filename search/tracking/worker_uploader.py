"""On a cluster the workers' machines carry artifacts to the tracking server, not the driver's."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.tracking.mlflow_runs import upload_artifact

logger = logging.getLogger(__name__)

_SECONDS = 20.0


class WorkerUploader:
    """Sends files from the sweep's storage to the tracking server by way of the workers, in turns.

    A worker needs what a driver needs for it: the server's address and the credentials in the
    environment. Where it cannot, the driver does it itself.
    """

    def __init__(self) -> None:
        self._turn: Iterator[int] = itertools.count()
        self._upload: Any = ray.remote(num_cpus=0, max_retries=0)(upload_artifact)
        self._busy = threading.Lock()
        self._open = True

    def close(self) -> None:
        """Wait for what is on its way, and take nothing more: Ray is about to be left."""
        with self._busy:
            self._open = False

    def __call__(self, uri: str, run_id: str, location: str, name: str) -> bool:
        """Whether the file of that name at `location` has arrived. Never raises."""
        with self._busy:
            return self._open and self._carry(uri, run_id, location, name)

    def _carry(self, uri: str, run_id: str, location: str, name: str) -> bool:
        nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0)]
        if not nodes:
            return False
        node = nodes[next(self._turn) % len(nodes)]
        task = self._upload.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        )
        try:
            ray.get(task.remote(uri, run_id, location, name), timeout=_SECONDS)
        except (RayError, OSError, RuntimeError) as error:
            logger.info("A worker could not upload %s: %s", name, error)
            return False
        return True
