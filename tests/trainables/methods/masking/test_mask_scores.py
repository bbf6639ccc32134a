"""Scores, groups, choices: the bookkeeping below the methods."""

import pytest
import torch
from torch import Tensor

from trainables.methods.base import MethodError
from trainables.methods.masking.scores import Granularity, MaskScores


def weights() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(6, 4, generator=rng),
        "conv.weight": torch.randn(3, 2, 5, 5, generator=rng),
    }


@pytest.mark.parametrize(
    ("granularity", "shapes"),
    [
        ("element", [(6, 4), (3, 2, 5, 5)]),
        ("filter", [(6, 1), (3, 1, 1, 1)]),
        ("channel", [(1, 4), (1, 2, 1, 1)]),
    ],
)
def test_shapes(granularity: Granularity, shapes: list[tuple[int, ...]]) -> None:
    scores = MaskScores(weights(), 1e-2, 5e-3, granularity)
    assert [tuple(m.shape) for m in scores.trainable().values()] == shapes
    assert all((m == 1e-2).all() for m in scores.trainable().values())
    assert all(torch.equal(w, weights()[n]) for n, w in scores.effective().items())


def test_sparsity_counts_weights_and_flips_count_bits() -> None:
    scores = MaskScores(weights(), 1e-2, 5e-3, "channel")
    with torch.no_grad():
        scores.trainable()["conv.weight"][0, 1] = 0.0
    assert scores.progress() == {
        "mask/flipped": 1.0,
        "mask/sparsity": 75 / (24 + 150),
        "mask/tensors": 2.0,
    }


def test_change_is_the_mean_way_of_the_scores() -> None:
    scores = MaskScores(weights(), 0.25, 0.125)
    with torch.no_grad():
        scores.trainable()["a.weight"][0, 0] = 0.0  # crossed
        scores.trainable()["a.weight"][0, 1] = 0.75  # moved away
    assert scores.change() == {"a.weight": 0.03125, "conv.weight": 0.0}
    scores.choose(torch.tensor([1.0, -1.0]))
    assert list(scores.change()) == ["a.weight"]


def test_the_positive_are_chosen_or_else_the_largest() -> None:
    scores = MaskScores(weights(), 1e-2, 5e-3)
    scores.choose(torch.tensor([-1.0, 2.0]))
    assert list(scores.trainable()) == ["conv.weight"]
    # Means count: both totals are those of all scores of a tensor.
    sizes = [m.numel() for m in MaskScores(weights(), 1e-2, 5e-3).trainable().values()]
    scores.choose(torch.tensor([-1.0 * sizes[0], -2.0 * sizes[1]]))
    assert list(scores.trainable()) == ["a.weight"]


def test_a_layer_is_chosen_as_a_whole() -> None:
    """The tensors of an attention or MLP count together, by the mean over all their scores."""
    names = ("0.attn.in_proj_weight", "0.attn.out_proj.weight", "0.mlp.c_fc.weight", "conv1.weight")
    sides = ((6, 2), (2, 2), (4, 2), (2, 3, 1, 1))
    scores = MaskScores({n: torch.ones(s) for n, s in zip(names, sides, strict=True)}, 1e-2, 5e-3)
    attention, conv = names[:2], names[3:]
    scores.choose(torch.tensor([-1.0, 2.0, -1.0, 0.5]))
    assert tuple(scores.trainable()) == attention + conv
    scores.choose(torch.tensor([1.0, -2.0, -1.0, 0.5]))
    assert tuple(scores.trainable()) == conv
    scores.choose(torch.tensor([-4.0, -4.0, -8.0, -12.0]))
    assert tuple(scores.trainable()) == attention


def test_loading() -> None:
    scores = MaskScores(weights(), 1e-2, 5e-3)
    masks = {n: torch.randn(w.shape) > 0 for n, w in weights().items()}
    scores.load(masks)
    assert all(torch.equal(mask, masks[n]) for n, mask in scores.masks().items())
    low = scores.trainable()["a.weight"][~masks["a.weight"]]
    assert (low == 2 * 5e-3 - 1e-2).all()
    part = {"a.weight": masks["a.weight"]}
    scores.load(part, any_subset=True)
    assert list(scores.trainable()) == ["a.weight"]
    for wrong in (part, {}, masks | {"a.weight": masks["a.weight"][:1]}):
        with pytest.raises(MethodError, match="missing, unexpected"):
            scores.load(wrong)
    with pytest.raises(MethodError, match="other"):
        scores.load({"other": masks["a.weight"]}, any_subset=True)
