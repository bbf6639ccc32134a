"""Which weights of an image tower can be masked, found by the kind of the layers."""

from __future__ import annotations

from typing import Literal

from torch import nn

Group = Literal["patch", "conv", "mhsa", "mlp"]
"""`patch`: the first convolution. `conv`: every other one. `mhsa`: the projections of attention,
the attention pool's included. `mlp`: the other linear layers of a transformer block."""


def maskable(visual: nn.Module) -> dict[str, Group]:
    """Parameter name -> group, in module order.

    Weight matrices and kernels only: never biases, norms, class token, positional embedding or
    the final projection (as in R-AMT's code).
    """
    found: dict[str, Group] = {}
    attention, mlp = _linear_layers(visual)
    for path, module in visual.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, nn.Conv2d):
            found[f"{prefix}weight"] = "conv" if "patch" in found.values() else "patch"
        elif isinstance(module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if getattr(module, name) is not None:
                    found[f"{prefix}{name}"] = "mhsa"
        elif module in attention:
            found[f"{prefix}weight"] = "mhsa"
        elif module in mlp:
            found[f"{prefix}weight"] = "mlp"
    return found


def _linear_layers(visual: nn.Module) -> tuple[set[nn.Module], set[nn.Module]]:
    """Linear layers that belong to attention, and those that belong to a block's MLP."""
    attention: set[nn.Module] = set()
    mlp: set[nn.Module] = set()
    for module in visual.modules():
        children = dict(module.named_children())
        if isinstance(module, nn.MultiheadAttention):
            attention.add(module.out_proj)
        elif any(isinstance(child, nn.MultiheadAttention) for child in children.values()):
            mlp.update(m for m in module.modules() if isinstance(m, nn.Linear))
        elif {"q_proj", "k_proj", "v_proj", "c_proj"} <= children.keys():  # the attention pool
            attention.update(m for m in children.values() if isinstance(m, nn.Linear))
    return attention, mlp - attention
