"""The weights of a tower that can be masked, found by the kind of their layers.

Supports image towers of open_clip (ViT, modified ResNet) and timm (`visual.trunk`), and
open_clip's text transformers.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from torch import Tensor, nn

from trainables.backbones.base import Backbone, BackboneError
from trainables.methods.base import MethodError

Group = Literal["patch", "conv", "mhsa", "mlp"]
"""`patch`: the first convolution. `conv`: every other one. `mhsa`: the projections of attention,
including those of an attention pool. `mlp`: the other linear layers of a transformer block, and the
pairs `fc1`, `fc2` of blocks without attention (ConvNeXt)."""

Masked = Literal["mhsa", "mlp", "all", "dynamic"]

GROUPS: dict[Masked, frozenset[Group]] = {
    "mhsa": frozenset({"mhsa"}),
    "mlp": frozenset({"mlp"}),
    "all": frozenset({"patch", "conv", "mhsa", "mlp"}),
    "dynamic": frozenset({"patch", "conv", "mhsa", "mlp"}),
}
"""The groups that each value of `masked` selects."""

WITH_PATCH = ("all", "dynamic")
"""Values of `masked` that include the first convolution."""

_PROJECTIONS: tuple[frozenset[str], ...] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),  # attention pool of the modified ResNet, timm's EVA
    frozenset({"qkv"}),  # timm's ViT
    frozenset({"q", "kv"}),  # timm's attention pool
)

_HEADS = ("proj", "text_projection", "fc", "classifier")
"""Names of a tower's last layers, besides those that begin with `head`."""
_POSITIONS = ("rel_pos", "cpb_mlp", "meta_mlp")
"""Names of timm's networks for position biases."""


def maskable(tower: nn.Module) -> dict[str, Group]:
    """Parameter name -> group, in module order.

    Weight matrices and kernels only: no biases, norms, class token, embeddings or final projection,
    as in R-AMT's code.
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
    """Parameter name -> kind of layer, for weights that belong to no group and are not known to be
    exempt from masking."""
    known, exempt = maskable(tower), _exempt(tower)
    found: dict[str, str] = {}
    for name, parameter in tower.named_parameters():
        path, _, last = name.rpartition(".")
        module = tower.get_submodule(path)
        if parameter.ndim > 1 and "weight" in last and name not in known and module not in exempt:
            found[name] = type(module).__name__
    return found


def layer_of(name: str, weight: Tensor) -> str:
    """Path of the layer that a maskable weight belongs to: the attention or MLP of its block, or
    the convolution itself."""
    path, _, last = name.rpartition(".")
    return path.rpartition(".")[0] if last == "weight" and weight.ndim == 2 else path


def image_names(backbone: Backbone, masked: Masked, patch_embedding: bool) -> list[str]:
    """Names of the selected parameters of the image tower; raises `MethodError` if it lacks
    them."""
    try:
        visual = backbone.visual
    except BackboneError as error:
        raise MethodError(str(error)) from None
    place = f"the image tower of {backbone.name}"
    return _selected(visual, masked, {"patch"} if patch_embedding else set(), place)


def text_names(backbone: Backbone, masked: Masked) -> list[str]:
    """Names in the model of the selected parameters of the text tower; raises `MethodError` if it
    lacks them."""
    for path in ("transformer", "text"):  # of a CLIP, of a CustomTextCLIP
        tower = getattr(backbone.model, path, None)
        if isinstance(tower, nn.Module):
            place = f"the text tower of {backbone.name}"
            return [f"{path}.{name}" for name in _selected(tower, masked, set(), place)]
    raise MethodError(
        f"masks on the text tower need one, and {backbone.name} has none, e.g. because it is a "
        "bundle of features: use a backbone with a model"
    )


def _selected(tower: nn.Module, masked: Masked, extra: set[Group], place: str) -> list[str]:
    """In module order. Raises `MethodError` if `extra` or the single group that `masked` names is
    missing, or if a layer's kind is unknown."""
    groups = maskable(tower)
    if unknown := [f"{name} ({kind})" for name, kind in unclassified(tower).items()]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise MethodError(
            f"masks need towers whose layers are all of a known kind, but {place} has weights "
            f"that are neither attention, MLP nor convolution: {', '.join(unknown[:3])}"
            f"{more} (its layers are {inventory(tower)}): use another backbone, or a method "
            "without masks (--space taskres)"
        )
    wanted, present = GROUPS[masked] | extra, set(groups.values())
    needed = extra if masked in WITH_PATCH else wanted
    if needed - present or not wanted & present:
        raise MethodError(
            f"masked={masked!r} needs {' and '.join(sorted(wanted))} weights, but {place} has "
            f"{', '.join(sorted(present)) or 'none that can be masked'} (its layers are "
            f"{inventory(tower)}): use masked='all', or another backbone"
        )
    return [name for name, group in groups.items() if group in wanted]


def inventory(tower: nn.Module) -> str:
    """The kinds of layers that have weights, with their counts, for messages."""
    kinds = Counter(
        type(module).__name__
        for module in tower.modules()
        if any(p.ndim > 1 for p in module.parameters(recurse=False))
    )
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no weights"


def _is_attention(module: nn.Module) -> bool:
    """Whether a module has projections to queries, keys and values, whatever its class."""
    if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
        return True
    if isinstance(module, nn.MultiheadAttention):  # keys and values of other widths
        return True
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    return any(names <= linear for names in _PROJECTIONS)


def _is_block(module: nn.Module) -> bool:
    """Whether a module holds attention beside children without attention. This excludes a tower
    that ends in an attention pool: its other children are blocks."""
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
    exempt = _exempt(tower)
    return attention - exempt, mlp - attention - exempt


def _exempt(tower: nn.Module) -> set[nn.Module]:
    """Modules that are never masked although they have weights: heads and projections, embeddings,
    the networks that compute attention's position bias, and Swin's patch merging, which belongs to
    no attention and no MLP."""
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
