"""Which weights of a tower can be masked, found by the kind of the layers.

Image towers of open_clip (ViT, modified ResNet) and of timm (`visual.trunk`), and open_clip's text
transformers.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from torch import nn

from trainables.backbones.base import Backbone, BackboneError
from trainables.methods.base import MethodError

Group = Literal["patch", "conv", "mhsa", "mlp"]
"""`patch`: the first convolution. `conv`: every other one. `mhsa`: the projections of attention,
the attention pool's included. `mlp`: the other linear layers of a transformer block, and the pairs
`fc1`, `fc2` of blocks without attention (ConvNeXt)."""

Masked = Literal["mhsa", "mlp", "all", "dynamic"]

GROUPS: dict[Masked, frozenset[Group]] = {
    "mhsa": frozenset({"mhsa"}),
    "mlp": frozenset({"mlp"}),
    "all": frozenset({"mhsa", "mlp", "conv"}),
    "dynamic": frozenset({"mhsa", "mlp", "conv"}),
}
"""Which layers each value of a configuration's `masked` means."""

_PROJECTIONS: tuple[frozenset[str], ...] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),  # the modified ResNet's pool, timm's EVA
    frozenset({"qkv"}),  # timm's ViT
    frozenset({"q", "kv"}),  # timm's attention pool
)


def maskable(tower: nn.Module) -> dict[str, Group]:
    """Parameter name -> group, in module order.

    Weight matrices and kernels only: never biases, norms, class token, embeddings or the final
    projection (as in R-AMT's code).
    """
    found: dict[str, Group] = {}
    attention, mlp = _linear_layers(tower)
    for path, module in tower.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, nn.Conv2d):
            found[f"{prefix}weight"] = "conv" if "patch" in found.values() else "patch"
        elif module in attention:
            found[f"{prefix}weight"] = "mhsa"
        elif module in mlp:
            found[f"{prefix}weight"] = "mlp"
        elif _is_attention(module):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if isinstance(getattr(module, name, None), nn.Parameter):
                    found[f"{prefix}{name}"] = "mhsa"
    return found


def image_names(backbone: Backbone, masked: Masked, patch_embedding: bool) -> list[str]:
    """The wanted parameters of the image tower; raises `MethodError` where it lacks them."""
    try:
        visual = backbone.visual
    except BackboneError as error:
        raise MethodError(str(error)) from None
    place = f"the image tower of {backbone.name}"
    return _wanted(visual, masked, {"patch"} if patch_embedding else set(), place)


def text_names(backbone: Backbone, masked: Masked) -> list[str]:
    """The wanted parameters of the text tower, by their names in the model; raises `MethodError`
    where it lacks them."""
    for path in ("transformer", "text"):  # of a CLIP, of a CustomTextCLIP
        tower = getattr(backbone.model, path, None)
        if isinstance(tower, nn.Module):
            place = f"the text tower of {backbone.name}"
            return [f"{path}.{name}" for name in _wanted(tower, masked, set(), place)]
    raise MethodError(
        f"masks on the text tower need one, and {backbone.name} has none, e.g. because it is a "
        "bundle of features: use a backbone with a model"
    )


def _wanted(tower: nn.Module, masked: Masked, more: set[Group], place: str) -> list[str]:
    """In order. Neither the first convolution nor the one group that a narrow `masked` names may
    be missing."""
    groups = maskable(tower)
    wanted, there = GROUPS[masked] | more, set(groups.values())
    needed = more if masked in ("all", "dynamic") else wanted
    if needed - there or not wanted & there:
        raise MethodError(
            f"masked={masked!r} needs {' and '.join(sorted(wanted))} weights, but {place} has "
            f"{', '.join(sorted(there)) or 'none that can be masked'} (its layers are "
            f"{inventory(tower)}): use masked='all', or another backbone"
        )
    return [name for name, group in groups.items() if group in wanted]


def inventory(tower: nn.Module) -> str:
    """The kinds of layers with weights of their own, and how many of each, for messages."""
    kinds = Counter(
        type(module).__name__
        for module in tower.modules()
        if any(p.ndim > 1 for p in module.parameters(recurse=False))
    )
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no weights"


def _is_attention(module: nn.Module) -> bool:
    """Anything with the projections to queries, keys and values, whatever its class."""
    if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
        return True
    if isinstance(module, nn.MultiheadAttention):  # keys and values of other widths
        return True
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    return any(names <= linear for names in _PROJECTIONS)


def _linear_layers(tower: nn.Module) -> tuple[set[nn.Module], set[nn.Module]]:
    """Linear layers that belong to attention, and those that belong to an MLP."""
    attention: set[nn.Module] = set()
    mlp: set[nn.Module] = set()
    for module in tower.modules():
        children = dict(module.named_children())
        if _is_attention(module):
            attention.update(m for m in children.values() if isinstance(m, nn.Linear))
        elif any(map(_is_attention, children.values())) or {"fc1", "fc2"} <= children.keys():
            mlp.update(m for m in module.modules() if isinstance(m, nn.Linear))
    final = getattr(getattr(tower, "head", None), "mlp", None)  # timm's projection, if it is one
    return attention, mlp - attention - set(final.modules() if final else ())
