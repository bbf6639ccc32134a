"""Decides on which device trials run and how many run at a time."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

import torch

from search.core.config import SweepConfig

LEAST_SHARE = 0.01
"""Smallest share of a core or a GPU that a trial may request. Ray counts in 0.0001; the limit keeps
the number of trials per core plausible."""
MOST_CONCURRENT = 10_000
"""Most trials at a time: each has a process."""


@dataclass(frozen=True)
class Machine:
    """The resources that trials can be placed on."""

    cpus: int
    """CPU cores."""
    gpus: int
    """CUDA devices."""
    largest_cpus: float
    """CPU cores of the largest node: a trial cannot span nodes."""
    elastic: bool
    """Whether an autoscaler may add nodes, so that missing resources may become available."""


@dataclass(frozen=True)
class Placement:
    """Device and resources of a trial, and how many trials run at a time."""

    device: Literal["cpu", "cuda"]
    """Device of models and data."""
    cpus: float
    """CPU cores per trial."""
    gpus: float
    """GPUs per trial."""
    slots: int
    """Trials at a time."""


def this_machine() -> Machine:
    """Return the cores this process may use and the CUDA devices that torch finds."""
    cpus = len(os.sched_getaffinity(0))
    return Machine(cpus, torch.cuda.device_count(), cpus, elastic=False)


def place(config: SweepConfig, machine: Machine) -> tuple[Placement | None, list[str]]:
    """Return the placement of trials, or None and every reason why there is none."""
    problems = _share_problems(config)
    gpus = 0.0 if problems else config.gpus_per_trial
    if config.device not in ("auto", "cpu", "cuda"):
        problems.append(f"--device must be auto, cpu or cuda, got '{config.device}'.")
    elif config.device == "cpu" and gpus:
        problems.append(
            f"--device cpu uses no GPU, but --gpus-per-trial is {gpus:g}: drop one of them."
        )
    if gpus is None:
        wanted = config.device == "cuda" or (config.device == "auto" and machine.gpus > 0)
        gpus = 1.0 if wanted else 0.0
    if gpus > 0 and machine.gpus == 0 and not machine.elastic and config.device != "cpu":
        cause = "--device cuda" if config.device == "cuda" else f"--gpus-per-trial {gpus:g}"
        problems.append(
            f"{cause} requires a CUDA device, and torch finds none on this machine. Omit the "
            "option to run on the CPU, or join a cluster that has GPUs with --address."
        )
    elif gpus > machine.gpus > 0:
        problems.append(
            f"--gpus-per-trial must be at most {machine.gpus}, the number of GPUs, got {gpus:g}."
        )
    most = machine.largest_cpus
    if config.cpus_per_trial > most and not machine.elastic:
        problems.append(
            f"A trial must fit on one machine: --cpus-per-trial is {config.cpus_per_trial:g}, "
            f"there are {most:g} cores. "
            + (f"Use at most {most:g}." if most else "Use a Ray that has some.")
        )
    if problems:
        return None, problems
    fitting = math.floor(machine.cpus / config.cpus_per_trial + 1e-9)
    if gpus > 0:
        fitting = min(fitting, math.floor(machine.gpus / gpus + 1e-9))
    slots = min(fitting, config.max_concurrent or fitting)
    if machine.elastic and config.max_concurrent:
        slots = config.max_concurrent  # the autoscaler adds nodes for them
    slots = min(max(1, slots), MOST_CONCURRENT)
    device: Literal["cpu", "cuda"] = "cuda" if gpus > 0 else "cpu"
    return Placement(device, config.cpus_per_trial, gpus, slots), []


def _share_problems(config: SweepConfig) -> list[str]:
    problems = []
    cpus, gpus = config.cpus_per_trial, config.gpus_per_trial
    if not LEAST_SHARE <= cpus < math.inf:
        problems.append(f"--cpus-per-trial must be at least {LEAST_SHARE:g}, got {cpus:g}.")
    if gpus is None or gpus == 0:
        return problems
    if not LEAST_SHARE <= gpus < math.inf:
        problems.append(f"--gpus-per-trial must be 0 or at least {LEAST_SHARE:g}, got {gpus:g}.")
    elif gpus > 1 and not gpus.is_integer():
        problems.append(f"--gpus-per-trial must be a whole number above 1, got {gpus:g}.")
    return problems
