"""The backbone of a feature bundle: its facts, and that it has no towers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainables.data.bundles import METADATA, tensors, write_bundle
from trainables.backbones.base import BackboneError
from trainables.backbones.registry import absolute_spec
from trainables.backbones.shared_weights import fetch_weights, share_weights
from trainables.core.storage import LocalStorage
from trainables.load_backbone import load_backbone


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "small.safetensors", tensors())


def test_what_is_left_of_a_model(path: Path) -> None:
    backbone = load_backbone(f"bundle:{path}")
    assert backbone.name == f"bundle:{path}"
    assert backbone.feature_dim == 6
    assert backbone.tower == "other"
    assert backbone.device == torch.device("cpu")
    assert float(backbone.logit_scale) == pytest.approx(50, rel=1e-6)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.to("cpu") is backbone


def test_towers_are_refused(path: Path) -> None:
    backbone = load_backbone(f"bundle:{path}")
    for call in (
        lambda: backbone.encode_image(torch.zeros(1, 3, 1, 1)),
        lambda: backbone.encode_text(["x"]),
        lambda: backbone.tokenizer(["x"]),
        lambda: backbone.visual,
    ):
        with pytest.raises(BackboneError, match=r"holds features and no model: .*--space taskres"):
            call()


def test_the_fingerprint_is_of_what_makes_the_logits(tmp_path: Path, path: Path) -> None:
    def of(name: str, **metadata: str) -> str:
        other = write_bundle(tmp_path / name, tensors() | changed, METADATA | metadata)
        return load_backbone(f"bundle:{other}").fingerprint

    expected = load_backbone(f"bundle:{path}").fingerprint
    changed = {"train_labels": tensors()["train_labels"].flip(0)}
    assert of("rows.safetensors") == expected
    changed = {}
    prints = {expected, of("a.st", backbone="ViT-Y"), of("b.st", logit_scale="51")}
    changed = {"class_features": 2 * tensors()["class_features"]}
    assert len(prints | {of("c.st")}) == 4


def test_a_wrong_bundle_is_a_backbone_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="is missing: check the path"):
        load_backbone(f"bundle:{tmp_path / 'none.safetensors'}")


def test_workers_elsewhere_get_the_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    spec = absolute_spec(f"bundle:{path.name}")
    assert spec == f"bundle:{path}"
    expected = load_backbone(spec).fingerprint
    location = share_weights(spec, LocalStorage(tmp_path / "sweep"))
    path.unlink()
    assert load_backbone(fetch_weights(spec, location)).fingerprint == expected
