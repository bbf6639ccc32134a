"""CLIP-Adapter, CLAP and the cross-modal probe: formulas, what stays on transfer, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainables.load_backbone import load_backbone
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Method,
    MethodError,
    Schedule,
    Support,
    TaskFacts,
)
from trainables.methods.clap import Clap, ClapConfig
from trainables.methods.clip_adapter import ClipAdapter, ClipAdapterConfig
from trainables.methods.cross_modal import CrossModal, CrossModalConfig

CLASSES, SIDE = 3, 8
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(kind: type[Method], config: Any) -> Any:
    classes = ClassTexts(3 * drawn(1, CLASSES, SIDE))
    return kind.build(config, BuildContext(load_backbone("tiny"), classes, Schedule(()), 6))


def cosines(z: Tensor, texts: Tensor) -> Tensor:
    found: Tensor = functional.cosine_similarity(z[:, None], texts[None], dim=-1)
    return load_backbone("tiny").logit_scale * found


def test_clip_adapters_formula() -> None:
    method = build(ClipAdapter, ClipAdapterConfig(ratio=0.3, reduction=2))
    assert (method.down.shape, method.up.shape) == ((4, 8), (8, 4))
    z = drawn(2, 5, SIDE)
    adapted = torch.relu(torch.relu(z @ method.down.T) @ method.up.T)
    wanted = cosines(0.3 * adapted + 0.7 * z, drawn(1, CLASSES, SIDE))
    torch.testing.assert_close(method(z), wanted, atol=1e-4, rtol=1e-4)


def test_clip_adapters_first_values_are_drawn_from_the_material() -> None:
    one, two = (build(ClipAdapter, ClipAdapterConfig()) for _ in range(2))
    assert torch.equal(one.down, two.down)
    assert one.down.abs().max() <= SIDE**-0.5
    assert one.down.std() > 0


def test_the_adapter_stays_for_other_classes() -> None:
    method = build(ClipAdapter, ClipAdapterConfig(ratio=0.5))
    other, z = drawn(3, 5, SIDE), drawn(2, 4, SIDE)
    adapted = torch.relu(torch.relu(z @ method.down.T) @ method.up.T)
    method.set_classes(ClassTexts(other))
    torch.testing.assert_close(method(z), cosines(adapted + z, other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("per_class", [True, False])
def test_claps_multipliers_and_loss(per_class: bool) -> None:
    method = build(Clap, ClapConfig(penalty=2.0, per_class=per_class))
    views, texts = drawn(4, 2, 6, SIDE), 3 * drawn(1, CLASSES, SIDE)
    method.prepare(Support(LABELS, 2, views.__getitem__, lambda: iter(())))
    own = torch.stack(
        [
            torch.stack([cosines(v, texts).softmax(-1)[k == LABELS, k] for v in views]).mean()
            for k in range(CLASSES)
        ]
    )
    wanted = own if per_class else own.mean().expand(CLASSES)
    torch.testing.assert_close(method.multipliers, wanted, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        method.prototypes.add_(drawn(5, CLASSES, SIDE))
    found = method.backward(Batch(views[0], LABELS), torch.Generator())
    held = 2.0 * sum(wanted[k] * drawn(5, CLASSES, SIDE)[k].square().sum() for k in range(3)) / 3
    entropy = functional.cross_entropy(cosines(views[0], method.prototypes.detach()), LABELS)
    assert found["train/penalty"] == pytest.approx(float(held), rel=1e-3)
    assert found["train/loss"] == pytest.approx(float(entropy + held), rel=1e-3)


def test_a_stronger_penalty_holds_prototypes_nearer() -> None:
    moved = []
    for penalty in (0.0, 1.0, 100.0):
        method = build(Clap, ClapConfig(penalty=penalty))
        features = drawn(4, 6, SIDE)
        method.prepare(Support(LABELS, 1, lambda _, z=features: z, lambda: iter(())))
        optimiser = torch.optim.SGD(method.trainable().values(), lr=0.01)
        for _ in range(200):
            method.backward(Batch(features, LABELS), torch.Generator())
            optimiser.step()
        moved.append(method.progress()["prototypes/moved"])
    assert moved[0] > moved[1] > moved[2] > 0


@pytest.mark.parametrize(("share", "texts"), [(0.5, 3), (0.25, 2), (0.0, 0)])
def test_texts_are_samples_too(share: float, texts: int) -> None:
    """Half of a batch would be six texts, but there are three: each once."""
    method = build(CrossModal, CrossModalConfig(text_share=share))
    features = drawn(4, 6, SIDE)
    loss = method.losses(Batch(features, LABELS), torch.Generator().manual_seed(0))["train/loss"]
    chosen = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(0))[:texts]
    samples = torch.cat([features, drawn(1, CLASSES, SIDE)[chosen]])
    labels = torch.cat([LABELS, chosen])
    wanted = functional.cross_entropy(cosines(samples, drawn(1, CLASSES, SIDE)), labels)
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)


def test_cross_modal_weights_are_not_scaled() -> None:
    method = build(CrossModal, CrossModalConfig())
    z = drawn(2, 5, SIDE)
    before = method(z)
    with torch.no_grad():
        method.weight.mul_(2)
    torch.testing.assert_close(method(z), 2 * before)


@pytest.mark.parametrize(
    ("kind", "config"), [(Clap, ClapConfig()), (CrossModal, CrossModalConfig())]
)
def test_other_classes_get_the_zero_shot_classifier(kind: type[Method], config: Any) -> None:
    method = build(kind, config)
    with torch.no_grad():
        for tensor in method.trainable().values():
            tensor.add_(1)
    other, z = drawn(3, 5, SIDE), drawn(2, 4, SIDE)
    method.set_classes(ClassTexts(other))
    torch.testing.assert_close(method(z), cosines(z, other), atol=1e-4, rtol=1e-4)


def test_an_adapter_has_a_hidden_unit() -> None:
    with pytest.raises(MethodError, match="reduction must be at most"):
        build(ClipAdapter, ClipAdapterConfig(reduction=9))


def test_published_settings() -> None:
    optim = Clap.preset("reference", TaskFacts("dtd", 4, 9)).optim
    assert (optim.optimiser, optim.lr, optim.momentum, optim.epochs) == ("sgd", 0.1, 0.9, 300)
    epochs = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
    for shots, wanted in epochs.items():
        found = ClipAdapter.preset("paper", TaskFacts("dtd", shots, 9))
        assert (found.optim.epochs, found.optim.batch_size) == (wanted, 32)
    few, many = (CrossModal.preset("paper", TaskFacts("x", 1, n)) for n in (10, 160_000))
    assert (few.optim.epochs, many.optim.epochs) == (300, 1)
