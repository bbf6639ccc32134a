"""Uploads artifacts to the tracking server from the workers' machines of a cluster."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.tracking.mlflow_client import set_environment
from search.tracking.mlflow_runs import artifact_folder
from trainables.core.storage import open_storage

logger = logging.getLogger(__name__)

_SECONDS = 20.0


def upload_artifact(uri: str, run_id: str, location: str, name: str) -> None:
    """Upload one file of a storage, from whatever machine this is called on; raises any error.

    Another machine may reach the server by another address than `uri`: MLFLOW_TRACKING_URI there.
    """
    from mlflow import MlflowClient

    set_environment()
    with open_storage(location).as_local_file(name) as path:
        server = os.environ.get("MLFLOW_TRACKING_URI", uri)
        MlflowClient(tracking_uri=server).log_artifact(run_id, str(path), artifact_folder(name))


class WorkerUploader:
    """Uploads files of the sweep's storage to the tracking server from the workers, in turns.

    A worker needs the server's address and the credentials in its environment, as a driver does. If
    a worker fails, the driver uploads the file itself.
    """

    def __init__(self) -> None:
        self._turn: Iterator[int] = itertools.count()
        self._upload: Any = ray.remote(num_cpus=0, max_retries=0)(upload_artifact)
        self._busy = threading.Lock()
        self._open = True

    def close(self) -> None:
        """Wait for the current upload and accept no more: Ray is about to be shut down."""
        with self._busy:
            self._open = False

    def __call__(self, uri: str, run_id: str, location: str, name: str) -> bool:
        """Upload a file at `location`; return whether it has arrived. Never raises."""
        with self._busy:
            return self._open and self._upload_from_worker(uri, run_id, location, name)

    def _upload_from_worker(self, uri: str, run_id: str, location: str, name: str) -> bool:
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
