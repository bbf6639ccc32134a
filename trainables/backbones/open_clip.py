"""open_clip, imported safely: the one file of the project that knows it."""

from __future__ import annotations

import sys
import types

import torch


def _provide_torchvision_operators() -> None:
    """Let `import torchvision` succeed where its compiled operators cannot load.

    A CPU build of torch beside a CUDA build of torchvision dies at import time with
    «operator torchvision::nms does not exist». Nothing in this project calls those operators, so
    an empty stand-in for the module that registers their shapes is enough. Where the operators
    are present, nothing is touched.
    """
    if "torchvision" in sys.modules:
        return
    try:
        torch.ops.torchvision.nms  # noqa: B018 - the attribute access is the probe
    except (AttributeError, RuntimeError):
        name = "torchvision._meta_registrations"
        sys.modules.setdefault(name, types.ModuleType(name))


_provide_torchvision_operators()

import open_clip  # noqa: E402 - the operators must be provided first
