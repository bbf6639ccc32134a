"""Low-rank branches beside the matrices of transformer blocks (Hu et al. 2022, arXiv:2106.09685).

Notation: W [o, i] a frozen weight, A [r, i] and B [o, r] its branch, s the branch's scale. For an
input x [..., i] the layer computes W x + bias + s B A d(x); d is dropout in training, otherwise the
identity.

The branches are part of a copy of the model that shares all its tensors: the model itself is not
changed, and dropout applies to the branch's input only, which a changed weight W + s B A could not
express.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Matrix = Literal["q", "k", "v", "o", "up", "down"]
"""The projections of a block's attention, and the two layers of its MLP."""

Encoder = Literal["image", "text"]


@dataclass(frozen=True)
class Site:
    """One matrix of one block."""

    block: str
    """Path of the block in the model, e.g. `visual.transformer.resblocks.0`."""
    matrix: Matrix
    """Which of the block's matrices."""
    parameter: str
    """Name of the model's parameter that contains the matrix."""
    third: int | None
    """Third of the parameter's rows that is the matrix, or None for all: the projections of
    queries, keys and values are one tensor [3 w, w]."""

    @property
    def name(self) -> str:
        """Unique name in a model, without dots."""
        return f"{self.block}.{self.matrix}".replace(".", "/")

    def of(self, parameter: Tensor) -> Tensor:
        """The parameter -> W [o, i], a view."""
        return parameter if self.third is None else parameter.chunk(3)[self.third]


def sites(model: nn.Module, encoder: Encoder, matrices: tuple[Matrix, ...]) -> list[Site]:
    """The named matrices of all blocks of one encoder, block by block; empty if the encoder does
    not consist of open_clip's plain blocks."""
    found = []
    for path in _blocks(model, encoder):
        for matrix in matrices:
            parameter, third = _PLACES[matrix]
            found.append(Site(path, matrix, f"{path}.{parameter}", third))
    return found


_PLACES: dict[Matrix, tuple[str, int | None]] = {
    "q": ("attn.in_proj_weight", 0),
    "k": ("attn.in_proj_weight", 1),
    "v": ("attn.in_proj_weight", 2),
    "o": ("attn.out_proj.weight", None),
    "up": ("mlp.c_fc.weight", None),
    "down": ("mlp.c_proj.weight", None),
}
_ROOTS: dict[Encoder, tuple[str, ...]] = {
    "image": ("visual.transformer.resblocks",),
    "text": ("transformer.resblocks", "text.transformer.resblocks"),  # CLIP, CustomTextCLIP
}


def _blocks(model: nn.Module, encoder: Encoder) -> list[str]:
    for root in _ROOTS[encoder]:
        paths = [path for path, _ in model.named_modules() if path.rpartition(".")[0] == root]
        if paths and all(_is_plain(model.get_submodule(path)) for path in paths):
            return paths
    return []


def _is_plain(block: nn.Module) -> bool:
    """Whether the replacements below compute everything that the block's layers do."""
    children = dict(block.named_children())
    attention, mlp = children.get("attn"), children.get("mlp")
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and attention.dropout == 0
        and isinstance(mlp, nn.Sequential)
        and all(isinstance(getattr(mlp, n, None), nn.Linear) for n in ("c_fc", "c_proj"))
        and "ln_1_kv" not in children  # of cross attention
    )


@dataclass
class Dropout:
    """Dropout that draws from the generator of the training step, and is off outside of one."""

    probability: float
    """Probability of a number becoming 0; the others are divided by 1 - probability."""
    _rng: torch.Generator | None = field(default=None, init=False)

    @contextmanager
    def drawing(self, rng: torch.Generator, device: torch.device) -> Iterator[None]:
        """Enables dropout inside a `with` block.

        `rng`, on the CPU, only seeds a generator on `device`: drawing the masks of all layers on
        the CPU and moving them would take longer than the layers themselves.
        """
        if self.probability > 0:
            seed = int(torch.randint(2**63 - 1, (), generator=rng))
            self._rng = torch.Generator(device).manual_seed(seed)
        try:
            yield
        finally:
            self._rng = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """[...] -> [...]."""
        if self._rng is None:
            return inputs
        kept = torch.empty_like(inputs).bernoulli_(1 - self.probability, generator=self._rng)
        return inputs * kept.div_(1 - self.probability)


@dataclass(frozen=True)
class Branch:
    """s B A d(x)."""

    down: Tensor
    """A [r, i]."""
    up: Tensor
    """B [o, r]."""
    scale: float
    """s."""
    dropout: Dropout
    """d."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., i] -> [..., o]."""
        inner = functional.linear(self.dropout(inputs), self.down)  # [..., r]
        return functional.linear(inner, self.scale * self.up)

    def change(self) -> Tensor:
        """s B A [o, i]: what the branch adds to W."""
        return self.scale * self.up @ self.down


def attach(model: nn.Module, branches: Mapping[Site, Branch]) -> None:
    """Replaces modules of `model` by ones with the same tensors and with branches."""
    by_block: dict[str, dict[Matrix, Branch]] = {}
    for site, branch in branches.items():
        by_block.setdefault(site.block, {})[site.matrix] = branch
    for path, own in by_block.items():
        block = model.get_submodule(path)
        attention, mlp = block.get_submodule("attn"), block.get_submodule("mlp")
        assert isinstance(attention, nn.MultiheadAttention)
        if own.keys() & {"q", "k", "v", "o"}:
            block.add_module("attn", _Attention(attention, own))
        for matrix, name in (("up", "c_fc"), ("down", "c_proj")):
            layer = mlp.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            if matrix in own:
                mlp.add_module(name, _Linear(layer, own[matrix]))


class _Linear(nn.Module):
    """A linear layer with a branch."""

    def __init__(self, layer: nn.Linear, branch: Branch) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias  # open_clip reads the weight's type
        self._branch = branch

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., i] -> [..., o]."""
        return functional.linear(inputs, self.weight, self.bias) + self._branch(inputs)


class _Attention(nn.Module):
    """The self-attention of `nn.MultiheadAttention`, with branches at its projections."""

    def __init__(self, plain: nn.MultiheadAttention, branches: Mapping[Matrix, Branch]) -> None:
        super().__init__()
        self.plain = plain
        self._branches = dict(branches)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """The same tensor [n, l, w] three times ([l, n, w] if the plain module is not batch-first)
        and an additive mask [l, l] or [n h, l, l] -> the same shape, and no weights."""
        assert query is key is value
        assert not need_weights
        x = query if self.plain.batch_first else query.transpose(0, 1)
        n, length, width = x.shape
        heads = self.plain.num_heads
        joint = functional.linear(x, self.plain.in_proj_weight, self.plain.in_proj_bias)
        names: tuple[Matrix, ...] = ("q", "k", "v")
        q, k, v = (
            self._with(name, x, part).view(n, length, heads, width // heads).transpose(1, 2)
            for name, part in zip(names, joint.chunk(3, dim=-1), strict=True)
        )
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(n, heads, length, length)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        mixed = mixed.transpose(1, 2).reshape(n, length, width)
        out = self._with("o", mixed, self.plain.out_proj(mixed))
        return (out if self.plain.batch_first else out.transpose(0, 1)), None

    def _with(self, matrix: Matrix, inputs: Tensor, plain: Tensor) -> Tensor:
        branch = self._branches.get(matrix)
        return plain if branch is None else plain + branch(inputs)
