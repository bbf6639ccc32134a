"""A Ray that the tests of a process share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import ray
from ray import cloudpickle

from search.execution import ray_session


def share_ray() -> None:
    """Start a Ray that all tests of this process use; a test that starts its own calls
    `end_shared_ray` first. `pytest_unconfigure` ends the last one."""
    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # whatever the user has in ~/.ray
        # By default Ray ends idle processes beyond one per CPU. A sweep uses three kinds, and each
        # new process imports torch, which takes seconds.
        patch.setenv("RAY_num_workers_soft_limit", "8")
        ray_session._reread_settings()
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=2**28,
            _node_ip_address="127.0.0.1",
        )


def end_shared_ray() -> None:
    """End it, and forget its settings."""
    ray.shutdown()
    ray_session._reread_settings()


@contextmanager
def travelling(module: ModuleType) -> Iterator[None]:
    """Send the module's functions to Ray's processes as code, so that they need not import it with
    all that it imports, which takes seconds."""
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
