"""Weights that other programs have downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from search.options import configure
from trainables.backbones.cached import cached_backbone


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def hub(home: Path, repository: str, file: str) -> None:
    path = home / f".cache/huggingface/hub/models--{repository}/snapshots/1a2b" / file
    path.parent.mkdir(parents=True)
    path.touch()


def test_the_cheaper_model_of_the_papers_comes_first(home: Path) -> None:
    assert cached_backbone() == ""
    hub(home, "laion--CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_config.json")
    assert cached_backbone() == ""  # without weights
    hub(home, "timm--vit_large_patch14_clip_224.openai", "open_clip_model.safetensors")
    assert cached_backbone() == "ViT-L-14"
    (home / ".cache/clip").mkdir()
    (home / ".cache/clip/ViT-B-16.pt").touch()
    assert cached_backbone() == f"ViT-B-16:{home}/.cache/clip/ViT-B-16.pt"


def test_they_are_the_default_for_own_images_only(home: Path) -> None:
    own = ["--dataset", f"folder:{home}"]
    assert configure(own).task.backbone == "tiny"
    hub(home, "timm--vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
    assert configure(own).task.backbone == "ViT-B-32"
    assert configure([*own, "--backbone", "tiny"]).task.backbone == "tiny"
    assert configure(["--dataset", "digits"]).task.backbone == "tiny"


def test_a_home_that_cannot_be_read_has_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of root for the user of a container."""
    stat = os.stat

    def denied(path: Any, *args: Any, **named: Any) -> os.stat_result:
        if str(path).startswith(str(home)):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *args, **named)

    monkeypatch.setattr(os, "stat", denied)
    assert cached_backbone() == ""
