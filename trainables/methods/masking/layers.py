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

_HEADS = ("proj", "text_projection", "fc", "classifier")
"""Names of a tower's last layers, besides `linear_head` and what begins with it."""
_POSITIONS = ("rel_pos", "cpb_mlp", "meta_mlp")
"""Names of timm's networks for position biases."""


def maskable(tower: nn.Module) -> dict[str, Group]:
    """Parameter name -> group, in module order.

    Weight matrices and kernels only: never biases, norms, class token, embeddings or the final
    projection (as in R-AMT's code); see `unclassified` for what remains.
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


def unclassified(tower: nn.Module) -> dict[str, str]:
    """Parameter name -> kind of layer, of weights that are in no group and not known to be apart.

    A tower that has such weights is one of which nobody has looked whether they should be masked.
    """
    known, apart = maskable(tower), _apart(tower)
    found: dict[str, str] = {}
    for name, parameter in tower.named_parameters():
        path, _, last = name.rpartition(".")
        module = tower.get_submodule(path)
        if parameter.ndim > 1 and "weight" in last and name not in known and module not in apart:
            found[name] = type(module).__name__
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


def _wanted(tower: nn.Module, masked: Masked, besides: set[Group], place: str) -> list[str]:
    """In order. Neither the first convolution nor the one group that a narrow `masked` names may
    be missing, and no layer may be of an unknown kind."""
    groups = maskable(tower)
    if unknown := [f"{name} ({kind})" for name, kind in unclassified(tower).items()]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise MethodError(
            f"masks need towers whose layers are all of a known kind, but {place} has weights "
            f"that are neither attention, MLP nor convolution: {', '.join(unknown[:3])}"
            f"{more} (its layers are {inventory(tower)}): use another backbone, or a "
            "method that masks nothing (--space taskres)"
        )
    wanted, there = GROUPS[masked] | besides, set(groups.values())
    needed = besides if masked in ("all", "dynamic") else wanted
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


def _is_block(module: nn.Module) -> bool:
    """Attention beside layers that hold none: not a whole tower that ends with an attention pool,
    whose other children are its blocks."""
    children = list(module.children())
    others = [child for child in children if not _is_attention(child)]
    return len(others) < len(children) and not any(
        _is_attention(inner) for child in others for inner in child.modules()
    )


def _linear_layers(tower: nn.Module) -> tuple[set[nn.Module], set[nn.Module]]:
    """Linear layers that belong to attention, and those that belong to an MLP."""
    attention: set[nn.Module] = set()
    mlp: set[nn.Module] = set()
    for module in tower.modules():
        children = dict(module.named_children())
        if _is_attention(module):
            attention.update(m for m in children.values() if isinstance(m, nn.Linear))
        elif _is_block(module) or {"fc1", "fc2"} <= children.keys():
            others = (child for child in children.values() if not _is_attention(child))
            mlp.update(m for child in others for m in child.modules() if isinstance(m, nn.Linear))
    apart = _apart(tower)
    return attention - apart, mlp - attention - apart


def _apart(tower: nn.Module) -> set[nn.Module]:
    """What is never masked although it has weights like what is: heads and projections, embeddings,
    the small networks that make attention's position bias out of coordinates, and Swin's patch
    merging, which stands between the blocks and, like the first layer, makes tokens: it belongs to
    no attention and to no MLP."""
    found: set[nn.Module] = set()
    for base in (tower, getattr(tower, "trunk", None)):  # timm's
        for name, child in base.named_children() if base is not None else ():
            if name.startswith("head") or name in _HEADS:
                found.update(child.modules())
    for path, module in tower.named_modules():
        name = path.rpartition(".")[2]
        embedding = "embed" in name or isinstance(module, nn.Embedding)
        if embedding or name in _POSITIONS or path.endswith("downsample.reduction"):
            found.update(module.modules())
    return found
