"""Checks of the backbone before a sweep starts, in a child process.

Building a model (open_clip, torchvision, timm, the weights) takes more than 130 MB, which the
driver would keep for as long as the sweep runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

import torch

from search.core.child_process import ChildError, ChildProcess
from trainables.backbones.base import Backbone, BackboneError, check_features
from trainables.backbones.bundle import FeatureBackbone
from trainables.core.text import did_you_mean
from trainables.data.prompts import PromptSet
from trainables.load_backbone import load_backbone
from trainables.methods.base import BuildContext, ClassTexts, MethodError, Schedule
from trainables.methods.registry import METHODS
from trainables.trial import TrialConfig

_SECONDS = 600.0
"""Time limit for one check of the methods. Loading has none: it may download gigabytes."""


@dataclass(frozen=True)
class Facts:
    """What a sweep must know about its backbone."""

    fingerprint: str
    """Digest of architecture, activation, weights and preprocessing."""
    tower: Literal["vit", "resnet", "other"]
    """Family of the image tower."""
    notices: tuple[str, ...] = ()
    """What the user should check: activation and preprocessing."""


class Examiner(Protocol):
    """Checks of one backbone."""

    def facts(self) -> Facts:
        """Load the backbone; raises `BackboneError`."""

    def check_methods(
        self, paper: TrialConfig, names: Sequence[Sequence[str]], images: int, metric: str = ""
    ) -> str:
        """Build each stage once on the backbone, for the classes of its `names`; return why one
        cannot be built, or an empty string. If a trial must report a `metric`, check that too."""


class BackboneProbe(Examiner):
    """Checks in this process."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._backbone: Backbone | None = None

    def facts(self) -> Facts:
        backbone = self._backbone = load_backbone(self._spec)
        if not isinstance(backbone, FeatureBackbone):
            check_features(backbone)
        return Facts(backbone.fingerprint, backbone.tower, backbone.notices)

    def check_methods(
        self, paper: TrialConfig, names: Sequence[Sequence[str]], images: int, metric: str = ""
    ) -> str:
        known = {"val/loss", *(() if METHODS[paper.method].training_free else ("train/loss",))}
        assert self._backbone is not None, "facts() comes first"
        has_text = not isinstance(self._backbone, FeatureBackbone)
        try:
            for stage, own in zip(paper.stages, names, strict=True):
                features = torch.ones(len(own), self._backbone.feature_dim)
                # Names alone: templates change texts but never whether they fit.
                texts = PromptSet(tuple(own), ("{}",)) if has_text else None
                schedule = Schedule(stage.optim.learning_rates(images))
                context = BuildContext(
                    self._backbone, ClassTexts(features, texts), schedule, images
                )
                method = METHODS[stage.method].build(stage.method_config, context)
                known |= method.progress().keys() if stage is paper else set()
        except MethodError as error:
            return str(error)
        if metric and metric not in known:
            return f"--second-objective: {did_you_mean('metric', metric, known)}"
        return ""


class RemoteProbe(BackboneProbe):
    """`BackboneProbe` behind JSON, in the child process."""

    def facts_as_json(self) -> dict[str, Any]:
        """`facts` as a dictionary."""
        return asdict(self.facts())

    def check_methods_from_json(self, paper: dict[str, Any], *arguments: Any) -> str:
        """`check_methods` with the configuration as a dictionary."""
        return self.check_methods(TrialConfig.from_dict(paper), *arguments)


class BackboneProbeProcess(Examiner):
    """Checks in a child process, which starts in the constructor and ends with `with`.

    A process that dies, hangs or prints nonsense is reported like an unsuitable backbone.
    """

    def __init__(self, spec: str) -> None:
        self._spec = spec
        # Its standard error is shown: downloads report their progress there.
        self._child = ChildProcess(
            f"{__name__}:RemoteProbe", spec, raises=(BackboneError,), show_errors=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.__exit__(*error)

    def facts(self) -> Facts:
        found = self._call("facts_as_json")
        return Facts(**found | {"notices": tuple(found["notices"])})

    def check_methods(
        self, paper: TrialConfig, names: Sequence[Sequence[str]], images: int, metric: str = ""
    ) -> str:
        arguments = (paper.to_dict(), names, images, metric)
        try:
            return str(self._call("check_methods_from_json", *arguments, timeout=_SECONDS))
        except BackboneError as error:
            return str(error)

    def _call(self, function: str, *arguments: Any, timeout: float | None = None) -> Any:
        try:
            return self._child.call(function, *arguments, timeout=timeout)
        except ChildError as error:
            raise BackboneError(
                f"the backbone must load and fit the methods, and '{self._spec}' could not be "
                f"checked: {error}. Free memory, or use a smaller model."
            ) from None
