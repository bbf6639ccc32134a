"""Activation and preprocessing belong to the weights: which are used, stated and advised."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.backbones import open_clip as library
from trainables.backbones import specs
from trainables.backbones.base import BackboneError, Preprocess, check_features
from trainables.backbones.layout import split_path
from trainables.backbones.open_clip import open_clip
from trainables.backbones.registry import BACKBONES, absolute_spec
from trainables.load_backbone import load_backbone

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
FIELDS = ("mean", "std", "interpolation", "resize_mode")
EVERY = [
    (arch, tag)
    for arch in open_clip.list_models()
    for tag in open_clip.list_pretrained_tags_by_model(arch)
]


READ_WEIGHTS = cache(specs.read_weights)
SHA256 = cache(library.sha256)
"""No file is changed after it was read."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small CLIP in float32."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**SMALL).state_dict(), path)
    return path


@pytest.fixture
def _every_architecture_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's names and tags, with small networks behind all of them."""

    def small(arch: str) -> dict[str, Any]:
        quick = "quick_gelu" in open_clip.get_model_config(arch)
        return {k: dict(v) if isinstance(v, dict) else v for k, v in SMALL.items()} | (
            {"quick_gelu": True} if quick else {}
        )

    monkeypatch.setattr(library, "architecture", small)
    monkeypatch.setattr(specs, "read_weights", READ_WEIGHTS)
    monkeypatch.setattr(library, "sha256", SHA256)


class Loaded(NamedTuple):
    """What a backbone says of itself, without its weights."""

    preprocess: Preprocess
    activation: str
    notices: tuple[str, ...]


@cache
def load(spec: str) -> Loaded:
    """Several tests follow the same advice."""
    backbone = load_backbone(spec)
    return Loaded(backbone.preprocess, backbone.activation, backbone.notices)


def published(arch: str, tag: str) -> tuple[Any, ...]:
    entry = library.get_pretrained_cfg(arch, tag)
    return tuple(tuple(entry[key]) if key in ("mean", "std") else entry[key] for key in FIELDS)


def used(backbone: Loaded) -> tuple[Any, ...]:
    return tuple(getattr(backbone.preprocess, key) for key in FIELDS)


@pytest.mark.usefixtures("_every_architecture_is_small")
def test_a_tag_gives_its_preprocessing_to_a_file(file: Path) -> None:
    """All published pairs, 40 of them with other preprocessing than CLIP's."""
    assert len(EVERY) > 150
    for arch, tag in EVERY:
        backbone = load(f"{arch}:{tag}@{file}")
        assert used(backbone) == published(arch, tag), (arch, tag)
        quick = library.get_pretrained_cfg(arch, tag).get("quick_gelu", False)
        if "quick_gelu" in open_clip.get_model_config(arch) or quick:
            assert backbone.activation == "quick_gelu"
        else:
            assert backbone.activation == "gelu"


@pytest.mark.usefixtures("_every_architecture_is_small")
def test_a_file_without_a_tag_has_that_of_all_published_weights_or_none(file: Path) -> None:
    refused = set()
    for arch in dict(EVERY):
        known = {published(a, tag) for a, tag in EVERY if a == arch}
        try:
            backbone = load(f"{arch}:{file}")
        except BackboneError as error:
            assert len(known) > 1
            refused.add(arch)
            advised = re.findall(r"'([^']+@[^']+)'", str(error))
            assert [used(load(spec)) for spec in advised]
        else:
            assert {used(backbone)} == known
            assert "as all published weights" in backbone.notices[0]
    assert {"ViT-L-14", "ViT-H-14"} <= refused
    backbone = load(f"ViT-S-16:{file}")
    assert used(backbone)[2:] == ("bicubic", "shortest")
    assert "no weights of ViT-S-16 are published" in backbone.notices[0]


@pytest.mark.usefixtures("_every_architecture_is_small")
def test_preprocessing_is_part_of_the_fingerprint(file: Path) -> None:
    seen = {
        load_backbone(f"ViT-L-14:{tag}@{file}").fingerprint
        for tag in ("laion400m_e32", "laion2b_s32b_b82k", "openai")
    }
    assert len(seen) == 3


@pytest.mark.parametrize("arch", sorted({*dict(EVERY), "ViT-S-16", "ViT-S-16-alt"}))
@pytest.mark.usefixtures("_every_architecture_is_small")
def test_every_advice_can_be_followed(arch: str, file: Path) -> None:
    """Advised names exist, and lead to the other activation."""
    try:
        backbone = load(f"{arch}:{file}")
    except BackboneError:
        return  # told apart above
    advised = re.findall(r"'([\w.-]+:[^' ]+)'", backbone.notices[0])
    assert bool(advised) == library.has_both_activations(arch)
    for spec in advised:
        other = load(spec)
        assert other.activation != backbone.activation
        assert {backbone.activation, other.activation} == {"gelu", "quick_gelu"}
    assert ("QuickGELU" if backbone.activation == "quick_gelu" else "plain GELU") in (
        backbone.notices[0]
    )


@pytest.mark.usefixtures("_every_architecture_is_small")
def test_half_precision_is_doubted_only_if_there_is_an_alternative(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    with torch.random.fork_rng(devices=[]):
        tensors = {n: t.half() for n, t in open_clip.CLIP(**SMALL).state_dict().items()}
    save_file(tensors, path)
    both = [arch for arch in open_clip.list_models() if library.has_both_activations(arch)]
    assert len(both) > 20
    for arch in (*both, "MobileCLIP-S1", "ViT-S-32", "PE-Core-B-16"):
        try:
            load_backbone(f"{arch}:{path}")
        except BackboneError as error:
            for spec in re.findall(r"'([^' ]+:[^']+)'", str(error)):
                if spec != f"{arch}:{path}":
                    load(spec)
    load_backbone(f"ViT-S-16-alt:{path}")


def test_offline_advice_names_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(published: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(library, "download_pretrained", offline)
    for arch, tag in (("ViT-B-32", "laion2b_e16"), ("MobileCLIP-S1", "datacompdr")):
        with pytest.raises(BackboneError, match=re.escape(f"'{arch}:{tag}@FILE'")):
            load_backbone(f"{arch}:{tag}")


@pytest.mark.usefixtures("_every_architecture_is_small")
def test_tags_that_do_not_fit(file: Path, tmp_path: Path) -> None:
    for spec, message in (
        (f"ViT-B-32:laion@{file}", "published weights of ViT-B-32"),
        (f"ViT-B-32-gelu:openai@{file}", "'-gelu' takes a file"),
        ("ViT-B-32:openai@/nowhere.pt", "must exist"),
    ):
        with pytest.raises(BackboneError, match=message):
            load_backbone(spec)
    torch.save(load_file(file) | {"vocab_size": torch.tensor(49408)}, tmp_path / "marked.pt")
    with pytest.raises(BackboneError, match="is OpenAI's and needs QuickGELU"):
        load_backbone(f"ViT-B-32:laion2b_e16@{tmp_path}/marked.pt")


def test_a_published_file_is_recognised(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = library.sha256(file)
    entry = {
        "url": f"https://github.com/mlfoundations/open_clip/releases/x-e32-{digest[:8]}.pt",
        "mean": (0.1, 0.2, 0.3),
    }
    monkeypatch.setattr(library, "published_weights", lambda _: {"one": entry, "two": {}})
    assert library.recognise("ViT-L-14", file) == "one"
    monkeypatch.setattr(library, "openai_digests", lambda: {digest})
    assert library.recognise("ViT-L-14", file) == "openai"


# Paths in specifications


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pt", "a@b.pt"):
        (tmp_path / name).touch()
    (tmp_path / "link.pt").symlink_to("w.pt")
    for spec, expected in (
        ("ViT-B-32:openai@w.pt", f"ViT-B-32:openai@{tmp_path}/w.pt"),
        ("ViT-B-32:w.pt", f"ViT-B-32:{tmp_path}/w.pt"),
        ("ViT-B-32:a@b.pt", f"ViT-B-32:{tmp_path}/a@b.pt"),
        ("ViT-B-32:link.pt", f"ViT-B-32:{tmp_path}/link.pt"),
        ("w.pt@ViT-B-32:openai@w.pt", f"{tmp_path}/w.pt@ViT-B-32:openai@{tmp_path}/w.pt"),
        ("hf-hub:timm/w.pt", "hf-hub:timm/w.pt"),
        ("ViT-B-32:openai", "ViT-B-32:openai"),
    ):
        assert absolute_spec(spec) == absolute_spec(expected) == expected
    assert split_path("ViT-B-32:openai@/a/w.pt") == ("ViT-B-32:openai@", "/a/w.pt")


# Damaged weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.proj": 0.0}, "image tower .* zero"),
        ({"text_projection": 0.0}, "text tower .* zero"),
        ({"visual.conv1.weight": 0.0}, "image tower .* the same whatever the input"),
        ({"token_embedding.weight": 0.0}, "text tower .* the same whatever the input"),
        ({"visual.proj": 1e38, "visual.ln_post.weight": 1e30}, "image tower .* not finite"),
    ],
)
def test_towers_that_encode_nothing(change: dict[str, float], message: str) -> None:
    backbone = load_backbone("tiny")
    damaged = backbone.changed(
        {
            name: torch.full_like(backbone.model.get_parameter(name), value)
            for name, value in change.items()
        }
    )
    check_features(backbone)
    with pytest.raises(BackboneError, match=message):
        check_features(damaged)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 80.0, -20.0])
def test_logit_scales_that_no_clip_has(scale: float, tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = load_file(BACKBONES["tiny"] / "open_clip_model.safetensors")
    for name in ("open_clip_config.json", "bpe_merges.txt.gz"):
        (tmp_path / name).write_bytes((BACKBONES["tiny"] / name).read_bytes())
    tensors["logit_scale"] = torch.full_like(tensors["logit_scale"], scale)
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(BackboneError, match=r"logit.scale"):
        load_backbone(str(tmp_path))
