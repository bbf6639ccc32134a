"""The spaces that can be named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from spaces.base import Setting, Space
from spaces.rmt import MaskSpace
from spaces.taskres import TaskResSpace

SPACES: dict[str, Callable[[Setting], Space]] = {
    "rmt": MaskSpace,
    "rmt-budget": partial(MaskSpace, vary="flip_budget"),
    "taskres": TaskResSpace,
}
