"""What machine trials run on, and how many fit on it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

import torch

from search.core.config import SweepConfig


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
    """Whether an autoscaler may add nodes, so that what is missing now may come."""


@dataclass(frozen=True)
class Placement:
    """Where one trial runs."""

    device: Literal["cpu", "cuda"]
    """Device of models and data."""
    cpus: float
    """CPU cores a trial occupies."""
    gpus: float
    """GPUs a trial occupies."""
    slots: int
    """Trials at a time."""


def this_machine() -> Machine:
    """The cores this process may use and the CUDA devices torch sees."""
    cpus = len(os.sched_getaffinity(0))
    return Machine(cpus, torch.cuda.device_count(), cpus, elastic=False)


def place(config: SweepConfig, machine: Machine) -> tuple[Placement | None, list[str]]:
    """Where trials go, or every reason why they cannot."""
    problems = []
    gpus = config.gpus_per_trial
    if not config.cpus_per_trial > 0:
        problems.append(f"--cpus-per-trial must be positive, got {config.cpus_per_trial:g}.")
    if gpus is not None and not gpus >= 0:
        problems.append(f"--gpus-per-trial must not be negative, got {gpus:g}.")
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
        asked = "--device cuda" if config.device == "cuda" else f"--gpus-per-trial {gpus:g}"
        problems.append(
            f"{asked} needs a CUDA device and there is none here (torch sees 0): leave the option "
            "away to run on the CPU, or join a cluster that has GPUs with --address."
        )
    elif gpus > machine.gpus > 0:
        problems.append(
            f"A trial can have at most the {machine.gpus} GPUs there are, --gpus-per-trial is "
            f"{gpus:g}."
        )
    if config.cpus_per_trial > machine.largest_cpus and not machine.elastic:
        problems.append(
            f"A trial must fit on one machine: --cpus-per-trial is {config.cpus_per_trial:g}, "
            f"there are {machine.largest_cpus:g} cores. Use at most {machine.largest_cpus:g}."
        )
    if problems:
        return None, problems
    fitting = math.floor(machine.cpus / config.cpus_per_trial + 1e-9)
    if gpus > 0:
        fitting = min(fitting, math.floor(machine.gpus / gpus + 1e-9))
    slots = min(fitting, config.max_concurrent or fitting)
    if machine.elastic and config.max_concurrent:
        slots = config.max_concurrent  # the autoscaler makes room
    slots = max(1, slots)
    device: Literal["cpu", "cuda"] = "cuda" if gpus > 0 else "cpu"
    return Placement(device, config.cpus_per_trial, gpus, slots), []
