"""A backbone with some other weights: those, and nothing else, are its own."""

from __future__ import annotations

import pytest
import torch

from trainables.backbones.base import Backbone, BackboneError
from trainables.load_backbone import load_backbone

NAME = "visual.transformer.resblocks.0.mlp.c_fc.weight"
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


def test_only_what_was_changed_is_changed(backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    features = backbone.encode_image(IMAGES)
    weight = backbone.model.get_parameter(NAME)
    changed = backbone.changed({NAME: weight * 0.5})
    for name, tensor in changed.model.state_dict().items():
        assert torch.equal(tensor, before[name] * (0.5 if name == NAME else 1.0)), name
    assert not torch.allclose(changed.encode_image(IMAGES), features, atol=1e-3)
    assert torch.equal(changed.encode_text(["x"]), backbone.encode_text(["x"]))
    assert torch.equal(backbone.encode_image(IMAGES), features)
    assert all(torch.equal(t, before[n]) for n, t in backbone.model.state_dict().items())


def test_the_rest_is_shared_and_nothing_has_a_gradient(backbone: Backbone) -> None:
    changed = backbone.changed({NAME: backbone.model.get_parameter(NAME) * 0})
    own = {name for name, p in changed.model.named_parameters() if p is not _of(backbone, name)}
    assert own == {NAME}
    assert not any(p.requires_grad for p in changed.model.parameters())
    assert not changed.model.training


def test_it_keeps_no_hold_of_what_it_was_given(backbone: Backbone) -> None:
    value = backbone.model.get_parameter(NAME).clone()
    changed = backbone.changed({NAME: value})
    value.zero_()
    assert changed.model.get_parameter(NAME).abs().max() > 0


def test_the_fingerprint_tells_what_and_to_what(backbone: Backbone) -> None:
    weight = backbone.model.get_parameter(NAME)
    other = NAME.replace("c_fc", "c_proj")
    changes = [
        {NAME: weight * 0.5},
        {NAME: weight * 0.25},
        {NAME: weight},
        {other: backbone.model.get_parameter(other) * 0.5},
        {NAME: weight * 0.5, other: backbone.model.get_parameter(other) * 0.5},
    ]
    prints = [backbone.changed(change).fingerprint for change in changes]
    assert len({backbone.fingerprint, *prints}) == 1 + len(changes)
    assert backbone.changed(changes[0]).fingerprint == prints[0]
    assert backbone.changed(dict(reversed(changes[4].items()))).fingerprint == prints[4]
    # A change of a change is neither of the two.
    twice = backbone.changed(changes[0]).changed(changes[0])
    assert twice.fingerprint not in prints


def test_another_shape_is_refused(backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="must have the shape"):
        backbone.changed({NAME: torch.zeros(2, 2)})
    with pytest.raises(AttributeError):
        backbone.changed({"visual.nothing": torch.zeros(2, 2)})


def _of(backbone: Backbone, name: str) -> torch.nn.Parameter:
    return backbone.model.get_parameter(name)
