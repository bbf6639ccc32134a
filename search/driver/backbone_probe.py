"""A look at the backbone before a sweep starts, by a process of its own.

What it takes to build a model (open_clip, torchvision, timm, the weights) is more than 130 MB that
the driver, which lives as long as the sweep, never needs again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch

from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.bundle import FeatureBackbone
from trainables.backbones.registry import load_backbone
from trainables.data.prompts import PromptSet
from trainables.methods.base import BuildContext, ClassTexts, MethodError, Schedule
from trainables.methods.registry import METHODS
from trainables.suggest import did_you_mean
from trainables.trial import TrialConfig


@dataclass(frozen=True)
class Facts:
    """What a sweep must know of its backbone."""

    fingerprint: str
    """Of architecture, activation and weights."""
    tower: Literal["vit", "resnet", "other"]
    """Family of the image tower."""


class Examiner(Protocol):
    """Looks at one backbone."""

    def facts(self) -> Facts:
        """Raises `BackboneError`."""

    def check_methods(
        self, paper: TrialConfig, names: Sequence[Sequence[str]], images: int, metric: str = ""
    ) -> str:
        """Build each stage once on the backbone, for the classes of its `names`: why one does not
        suit, or nothing. Where a trial must report a `metric`, it is looked for too."""


class BackboneProbe:
    """In this process."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._backbone: Backbone | None = None

    def facts(self) -> Facts:
        """See `Examiner`."""
        self._backbone = load_backbone(self._spec)
        return Facts(self._backbone.fingerprint, self._backbone.tower)

    def check_methods(
        self, paper: TrialConfig, names: Sequence[Sequence[str]], images: int, metric: str = ""
    ) -> str:
        """See `Examiner`."""
        known = {"val/loss", *(() if METHODS[paper.method].training_free else ("train/loss",))}
        assert self._backbone is not None, "facts() comes first"
        wordless = isinstance(self._backbone, FeatureBackbone)
        try:
            for stage, own in zip(paper.stages, names, strict=True):
                features = torch.ones(len(own), self._backbone.feature_dim)
                # Names alone: a template decides what a text says, never whether there is room.
                texts = None if wordless else PromptSet(tuple(own), ("{}",))
                schedule = Schedule(stage.optim.learning_rates(images))
                material = BuildContext(
                    self._backbone, ClassTexts(features, texts), schedule, images
                )
                method = METHODS[stage.method].build(stage.method_config, material)
                known |= method.progress().keys() if stage is paper else set()
        except MethodError as error:
            return str(error)
        if metric and metric not in known:
            return f"--second-objective: {did_you_mean('metric', metric, known)}"
        return ""


class BackboneProbeProcess:
    """In a process of its own, which begins at once and ends with `with`."""

    def __init__(self, spec: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "search.driver.backbone_probe", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for the driver, which ends this process too
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def facts(self) -> Facts:
        """See `Examiner`."""
        answer = self._hear()
        if "problem" in answer:
            raise BackboneError(answer["problem"])
        return Facts(**answer)

    def check_methods(
        self, paper: TrialConfig, names: Sequence[Sequence[str]], images: int, metric: str = ""
    ) -> str:
        """See `Examiner`."""
        question = {
            "paper": paper.to_dict(),
            "names": names,
            "images": images,
            "metric": metric,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return str(self._hear()["problem"])

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):  # libraries print too, when they download
                answer: dict[str, Any] = json.loads(line.removeprefix(_MARK))
                return answer
        raise RuntimeError(f"the look at the backbone ended with code {self._process.wait()}")


_MARK = "examined: "


def _tell(answer: dict[str, Any]) -> None:
    print(_MARK + json.dumps(answer), flush=True)


def main() -> None:
    """The other process: facts, then an answer to the question on standard input."""
    examination = BackboneProbe(sys.argv[1])
    try:
        _tell(asdict(examination.facts()))
    except BackboneError as error:
        _tell({"problem": str(error)})
        return
    for line in sys.stdin:
        question = json.loads(line)
        paper = TrialConfig.from_dict(question.pop("paper"))
        _tell({"problem": examination.check_methods(paper, **question)})


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the driver was killed: nobody wants to know any more
        os._exit(1)
