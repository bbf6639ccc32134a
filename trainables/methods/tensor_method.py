"""Methods that minimise one loss and store their tensors as they are.

Notation: b batch size, c classes, k trainings that are stacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.base import Batch, BuildContext, Method, MethodError


class TensorMethod(Method):
    """A method that follows the gradient of one loss, and whose artifact is its tensors."""

    stackable: ClassVar[bool] = False
    """Whether `forward`, `losses` and `follow` accept stacked tensors, and draw no random numbers.

    Tensors, inputs [k, b, ...] and labels [k, b] of k trainings then share their first dimension,
    logits are [k, b, c], and each loss is [k]; buffers that are equal in all trainings are not
    stacked, see `trainables/stack.py`. Such a method has no submodules.
    """
    scale: Tensor
    """exp(logit_scale) of the backbone, a scalar."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.register_buffer("scale", self.backbone.logit_scale.detach(), persistent=False)

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name: `train/loss` is minimised, all others are only reported.

        By default the mean cross entropy, without random numbers.
        """
        return {"train/loss": mean_cross_entropy(self(batch.inputs), batch.labels)}

    def follow(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Set `.grad` of every trainable tensor; return `losses` without their graph."""
        losses = self.losses(batch, rng)
        fill_gradients(losses["train/loss"].sum(), self.trainable().values())
        return {name: loss.detach() for name, loss in losses.items()}

    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        return {name: loss.item() for name, loss in self.follow(batch, rng).items()}

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def learned(self) -> dict[str, Tensor]:
        """The artifact's tensors by name; by default the trainable ones."""
        return dict(self.trainable())

    def metadata(self) -> dict[str, str]:
        """The artifact's metadata, which must match when it is loaded."""
        backbone = self.backbone.fingerprint
        return {"format": self.name, "format_version": "1", "backbone": backbone}

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of `learned`, copied to the CPU."""
        tensors = {n: t.detach().cpu().clone().contiguous() for n, t in self.learned().items()}
        return tensors, self.metadata()

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        self.check_artifact(tensors, metadata)
        for name, own in self.learned().items():
            own.copy_(tensors[name])

    def check_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Raises `MethodError` unless metadata and shapes match this method's and all values are
        finite."""
        expected = self.metadata()
        if {key: metadata.get(key) for key in expected} != expected:
            raise MethodError(
                f"the artifact's metadata must contain {expected}, got {dict(metadata)}: load it "
                "with the method and the backbone it was trained with"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in self.learned().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != shapes or not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise MethodError(
                f"the artifact must hold finite tensors of shapes {shapes}, got {found}: load it "
                "with the configuration and the classes it was trained with"
            )


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over b of the cross entropy of logits [..., b, c] and labels [..., b]: [...]."""
    rows = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return rows.view(labels.shape).mean(-1)


def fill_gradients(loss: Tensor, tensors: Iterable[nn.Parameter]) -> None:
    """Replaces `.grad` of every tensor by d loss / d tensor, for a scalar `loss`.

    Raises `RuntimeError` if the loss does not depend on one of the tensors.
    """
    leaves = list(tensors)
    for leaf in leaves:
        leaf.grad = None  # frees the last step's gradients, which may be as large as an encoder
    gradients = torch.autograd.grad(loss, leaves) if leaves else ()
    for leaf, gradient in zip(leaves, gradients, strict=True):
        # The fused optimisers read a gradient in the order of its tensor, whatever its strides.
        leaf.grad = gradient.contiguous()
