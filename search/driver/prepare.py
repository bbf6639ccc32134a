"""Decodes and encodes images before the first trial, with a progress bar.

Workers do the same for data that is missing on their machine.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Literal

import ray
from rich.console import Console

from search.core.placement import Placement
from search.core.problems import StoppedError
from search.core.task import reads_files
from search.driver.preflight import Plan
from search.evaluation.run import shared_weights
from search.evaluation.workers import EncodedTaskSpec
from search.terminal.bars import Bars
from trainables.core.plugins import plugin_sources
from trainables.core.storage import Storage, StorageError
from trainables.data.base import DataError
from trainables.data.sealed import TRAINING_PROCESS, seal_process
from trainables.encoded_task import Progress
from trainables.methods.registry import METHODS
from trainables.trial import Episode


def prepare(plan: Plan, placement: Placement, sweep: Storage, console: Console) -> None:
    """Compute the data that every trial needs, on one machine of the cluster.

    Raises `StoppedError` for images that cannot be read, `StorageError` for a full disk.
    """
    task, config = plan.config.task, plan.config
    if not reads_files(task, plan.source):
        return
    weights = shared_weights(config, sweep)
    threads = max(1, int(placement.cpus))
    plugins = tuple(plugin_sources().items())
    spec = EncodedTaskSpec(task, config.data, placement.device, threads, weights, plugins=plugins)
    reads = METHODS[plan.space.paper.stages[0].method].input_kind
    options = {
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
        "runtime_env": {"env_vars": TRAINING_PROCESS},
    }
    remote = ray.remote(**options, num_returns="streaming")(_prepare)
    latest: dict[str, Progress] = {}
    with Bars(console) as bars:
        for reference in remote.remote(spec, task.episodes, reads):
            try:
                news: Progress | str = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise StoppedError(str(error).strip().splitlines()[-1]) from error
            if isinstance(news, str):
                raise StoppedError(news)
            latest[news.what] = news
            bars.tell(news.what, news.done, news.total, _rate(news))
    for last in latest.values():
        console.print(f"{last.what}: {_rate(last)}.".capitalize(), highlight=False)


def _rate(news: Progress) -> str:
    return f"{news.done / news.seconds:.0f} images/s" if news.seconds else ""


def _prepare(
    spec: EncodedTaskSpec, episodes: tuple[Episode, ...], reads: Literal["features", "images"]
) -> Iterator[Progress | str]:
    """Run on a worker: yield progress, or the reason of a failure as text."""
    seal_process()
    news: queue.Queue[Progress | str | None] = queue.Queue()
    failures: list[Exception] = []

    def work() -> None:
        try:
            encoded = spec.open(news.put)
            for episode in episodes:
                for view in encoded.views(episode):
                    view.materialize(reads)
        except (DataError, StorageError) as error:
            news.put(str(error))
        except Exception as error:
            failures.append(error)
        finally:
            news.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (item := news.get()) is not None:
        yield item
    if failures:
        raise failures[0]
