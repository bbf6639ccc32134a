"""Loading CLIP models: the activation guard on every path, fingerprints, and every bad file."""

import copy
import gzip
import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainables.backbones import open_clip as loader
from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.layout import CONFIG_FILE, MERGES_FILE, WEIGHTS_FILE
from trainables.backbones.open_clip import open_clip
from trainables.backbones.registry import BACKBONES
from trainables.load_backbone import load_backbone

ARCH = "small-test-clip"
MIXED = "small-test-mixed"
VISION = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "patch_size": None}
URL = "https://example.org/clip/models/{digest}/small.pt"


def config(**change: Any) -> dict[str, Any]:
    return {"embed_dim": 16, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)} | change


@pytest.fixture(autouse=True)
def _small_architectures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """open_clip, knowing small architectures and the tags of published ones."""
    configs = {
        ARCH: config(),
        f"{ARCH}-quickgelu": config(quick_gelu=True),
        MIXED: config(),
    }
    clip = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2)}
    squash = {"interpolation": "bilinear", "resize_mode": "squash"}
    tags = {
        ARCH: {"openai": clip | {"quick_gelu": True}, "laion": clip | {"quick_gelu": False}},
        MIXED: {"one": clip, "two": clip | squash},
    }
    factory, pretrained = open_clip.factory, open_clip.pretrained
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", factory._MODEL_CONFIGS | configs)
    monkeypatch.setattr(pretrained, "_PRETRAINED", pretrained._PRETRAINED | tags)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(seed: int = 0, half: bool = False, **change: Any) -> dict[str, Tensor]:
    """A random state dict in the layout that OpenAI and open_clip share."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = open_clip.CLIP(**config(**change)).state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.equal(tensor, tensor.half().float()):
            tensors[name] = tensor.half().float() if half else tensor
    return dict(tensors)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every download is this file."""
    path = tmp_path / "downloaded.safetensors"
    save_file(weights(half=True), path)
    monkeypatch.setattr(loader, "download_pretrained", lambda published: str(path))
    return path


def runs(backbone: Backbone) -> set[str]:
    """The activations that a forward pass really goes through."""
    seen: set[str] = set()
    handles = [
        m.register_forward_hook(lambda m, *_: seen.add(type(m).__name__))
        for m in backbone.model.modules()
        if type(m).__name__ in ("GELU", "QuickGELU")
    ]
    size = backbone.preprocess.image_size
    backbone.encode_image(torch.zeros(1, 3, size, size))
    backbone.encode_text(["a photo"])
    for handle in handles:
        handle.remove()
    return seen


def check(backbone: Backbone, activation: str) -> None:
    assert backbone.activation == activation
    assert runs(backbone) == {"QuickGELU" if activation == "quick_gelu" else "GELU"}
    assert not backbone.model.training
    for parameter in backbone.model.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad


def refusal(spec: str) -> str:
    with pytest.raises(BackboneError) as caught:
        load_backbone(spec)
    return str(caught.value)


# The activation, on every path


@pytest.mark.usefixtures("downloads")
def test_published_weights_run_what_their_tag_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(load_backbone(ARCH), "quick_gelu")
        check(load_backbone(f"{ARCH}:openai"), "quick_gelu")
        check(load_backbone(f"{ARCH}:laion"), "gelu")


@pytest.mark.usefixtures("downloads")
def test_preprocessing_comes_from_the_tag() -> None:
    transform = load_backbone(f"{MIXED}:two").preprocess
    assert (transform.interpolation, transform.resize_mode) == ("bilinear", "squash")
    transform = load_backbone(f"{ARCH}:openai").preprocess
    assert (transform.mean, transform.std) == ((0.4,) * 3, (0.2,) * 3)
    assert (transform.image_size, transform.resize_mode) == (16, "shortest")


def test_file_of_half_precision_numbers_is_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(weights(half=True), path)
    message = refusal(f"{ARCH}:{path}")
    for remedy in (f"{ARCH}-quickgelu:{path}", f"openai:{path}", f"{ARCH}-gelu:{path}"):
        assert f"'{remedy}'" in message
    check(load_backbone(f"{ARCH}-quickgelu:{path}"), "quick_gelu")
    check(load_backbone(f"openai:{path}"), "quick_gelu")
    check(load_backbone(f"{ARCH}-gelu:{path}"), "gelu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_every_file_type_is_guarded(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    tensors = {n: t.to(dtype) for n, t in weights(half=True).items()}
    path = tmp_path / f"w{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    assert "QuickGELU" in refusal(f"{ARCH}:{path}")
    check(load_backbone(f"openai:{path}"), "quick_gelu")


def test_file_of_single_precision_numbers_is_taken_at_its_word(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in weights().items()}}, path)
    check(load_backbone(f"{ARCH}:{path}"), "gelu")
    check(load_backbone(f"{ARCH}-quickgelu:{path}"), "quick_gelu")


@pytest.mark.parametrize("mark", ["input_resolution", "context_length", "vocab_size"])
def test_file_with_openai_marks_runs_quick_gelu(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(weights(half=True) | {mark: torch.tensor(7)}, path)
    check(load_backbone(f"{ARCH}:{path}"), "quick_gelu")
    assert "'-gelu' means plain GELU" in refusal(f"{ARCH}-gelu:{path}")


def test_torchscript_archive_runs_quick_gelu(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    archive(weights(half=True), path)
    check(load_backbone(f"{ARCH}:{path}"), "quick_gelu")
    check(load_backbone(f"openai:{path}"), "quick_gelu")
    assert "'-gelu' means plain GELU" in refusal(f"{ARCH}-gelu:{path}")


def test_file_with_a_published_digest_runs_quick_gelu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pt"
    torch.save(weights(half=True), path)
    assert "QuickGELU" in refusal(f"{ARCH}:{path}")
    monkeypatch.setattr(loader, "openai_digests", lambda: {loader.sha256(path)})
    check(load_backbone(f"{ARCH}:{path}"), "quick_gelu")


def test_published_digests_are_read_from_open_clip() -> None:
    digests = loader.openai_digests()
    assert "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f" in digests  # B/16
    assert len(digests) >= 9
    assert all(len(digest) == 64 for digest in digests)


def test_wrong_activation_after_loading_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pt"
    torch.save(weights(half=True), path)
    construct = loader.construct
    plain: Callable[..., nn.Module] = lambda c, *more: construct(c | {"quick_gelu": False}, *more)  # noqa: E731
    monkeypatch.setattr(loader, "construct", plain)
    assert "must run quick_gelu" in refusal(f"openai:{path}")


# openai:FILE


@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["vit", "resnet"])
def test_openai_file_keeps_every_bit(tmp_path: Path, vision: dict[str, Any]) -> None:
    tensors = weights(vision_cfg=vision)
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    backbone = load_backbone(f"openai:{path}")
    loaded = backbone.model.state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert backbone.tower == ("vit" if vision is VISION else "resnet")
    assert backbone.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert backbone.preprocess.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    assert (backbone.preprocess.interpolation, backbone.preprocess.resize_mode) == (
        "bicubic",
        "shortest",
    )


def test_openai_file_equals_the_named_architecture(tmp_path: Path) -> None:
    save_file(weights(half=True), tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **{n: t.half().numpy() for n, t in weights(half=True).items()})
    specs = [f"openai:{tmp_path}/w.safetensors", f"openai:{tmp_path}/w.npz"]
    one, two, three = map(load_backbone, [*specs, f"{ARCH}-quickgelu:{tmp_path}/w.safetensors"])
    assert one.fingerprint == two.fingerprint == three.fingerprint


def test_npz_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.array([Bomb()], dtype=object))
    assert "without running code" in refusal(f"openai:{tmp_path}/w.npz")


# Folders and names


def test_tiny() -> None:
    backbone = load_backbone("tiny")
    check(backbone, "gelu")
    assert (backbone.name, backbone.tower, backbone.feature_dim) == ("tiny", "vit", 128)
    tokens = backbone.tokenizer(["a photo of the digit seven.", "", "\N{CAT FACE} 猫" * 40])
    assert tokens.shape == (3, 24)
    assert int(tokens.max()) < 1536
    assert load_backbone(str(BACKBONES["tiny"])).fingerprint == backbone.fingerprint
    assert load_backbone(f"local-dir:{BACKBONES['tiny']}").fingerprint == backbone.fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BACKBONES["tiny"], tmp_path / "model"))


def test_fingerprint_sees_every_change(folder: Path) -> None:
    seen = {load_backbone(str(folder)).fingerprint}

    def expect_new() -> None:
        fingerprint = load_backbone(str(folder)).fingerprint
        assert fingerprint not in seen
        seen.add(fingerprint)

    content = json.loads((folder / CONFIG_FILE).read_text())
    for section, key, value in (
        ("model_cfg", "quick_gelu", True),
        ("preprocess_cfg", "mean", [0.5, 0.5, 0.4]),
        ("preprocess_cfg", "std", [0.5, 0.5, 0.4]),
        ("preprocess_cfg", "interpolation", "bilinear"),
        ("preprocess_cfg", "resize_mode", "shortest"),
    ):
        changed = copy.deepcopy(content)
        changed[section][key] = value
        (folder / CONFIG_FILE).write_text(json.dumps(changed))
        expect_new()
    changed = copy.deepcopy(content)
    changed["model_cfg"]["vision_cfg"]["head_width"] = 64  # same weights, another network
    (folder / CONFIG_FILE).write_text(json.dumps(changed))
    expect_new()
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=7))
    assert load_backbone(str(folder)).fingerprint in seen
    tensors = load_file(folder / WEIGHTS_FILE)
    name = "visual.transformer.resblocks.1.ln_2.bias"
    tensors[name][3] += 2**-6
    save_file(tensors, folder / WEIGHTS_FILE)
    expect_new()


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    load_backbone("tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_vocabulary_must_fit(folder: Path) -> None:
    (folder / MERGES_FILE).unlink()
    assert "vocabulary must have the model's size 1536" in refusal(str(folder))
    (folder / MERGES_FILE).write_bytes(gzip.compress(b"header\na b"))
    assert "vocabulary must have the model's size 1536" in refusal(str(folder))
    (folder / MERGES_FILE).write_bytes(b"not gzip")
    assert "tokenizer" in refusal(str(folder))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model_cfg", {"embed_dim": "x"}, "can build"),
        ("model_cfg", {"vision_cfg": {"unheard": 1}}, "can build"),
        ("model_cfg", {"embed_dim": 64}, "must fit the architecture"),
        ("preprocess_cfg", {"interpolation": "nearest"}, "interpolation 'nearest'"),
        ("preprocess_cfg", {"resize_mode": "crop"}, "resize mode 'crop'"),
        ("preprocess_cfg", {"mean": [0.5]}, "three channels"),
        ("preprocess_cfg", {"std": [0.5, 0.5, 0]}, "three channels"),
        ("preprocess_cfg", {"std": "x"}, "not numbers"),
    ],
)
def test_bad_configuration(
    folder: Path, section: str, change: dict[str, Any], message: str
) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    content[section] |= change
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    assert message in refusal(str(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"model_cfg": 3}', "3", "\0"])
def test_unreadable_configuration(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    refusal(str(folder))


def test_folder_without_a_model(tmp_path: Path) -> None:
    assert CONFIG_FILE in refusal(str(tmp_path))
    assert CONFIG_FILE in refusal(f"local-dir:{tmp_path}/none")


# Names that do not exist


def test_unknown_architecture() -> None:
    assert "Did you mean 'ViT-B-16'" in refusal("ViT-B16")
    assert "Did you mean 'tiny'?" in refusal("tinny")
    refusal("")
    refusal(":")


def test_unknown_tag() -> None:
    message = refusal(f"{ARCH}:opnai")
    assert "Did you mean 'openai'?" in message
    assert "laion" in message
    for spec in (f"{ARCH}-gelu:openai", f"{ARCH}-gelu:x", f"{ARCH}-gelu"):
        assert "'-gelu' takes a file" in refusal(spec)


def test_missing_file(tmp_path: Path) -> None:
    for spec in (f"{ARCH}:{tmp_path}/no.pt", f"openai:{tmp_path}/no.pt", f"{ARCH}:no.safetensors"):
        assert "must exist" in refusal(spec)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(published: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(loader, "download_pretrained", offline)
    message = refusal(f"{ARCH}:openai")
    assert "Name or service not known" in message
    assert f"'{ARCH}:openai@FILE'" in message
    assert f"'{ARCH}:laion@FILE'" in refusal(f"{ARCH}:laion")


# Files that are not weights


class Bomb:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code from a weights file was run",))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".npz"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!DOCTYPE html><html>404</html>", id="html"),
        pytest.param(pickle.dumps({"a": Bomb()}), id="code"),
        pytest.param(pickle.dumps({"a": 1}), id="pickle"),
        pytest.param(b"PK\x03\x04 broken", id="zip"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid", id="pointer"),
    ],
)
def test_not_weights(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    for spec in (f"openai:{path}", f"{ARCH}:{path}", f"{ARCH}-quickgelu:{path}"):
        assert str(path) in refusal(spec)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path, tensors = tmp_path / f"w{suffix}", weights()
    if suffix == ".npz":
        np.savez(path, **{n: t.numpy() for n, t in tensors.items()})
    else:
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "download it again" in refusal(f"openai:{path}")


@pytest.mark.parametrize("content", [3, [], {}, {"a": 1}, {"state_dict": {}}, {1: torch.ones(1)}])
def test_checkpoint_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert "state dict" in refusal(f"openai:{tmp_path}/w.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "scheduler": Bomb()}, tmp_path / "w.pt")
    assert "without running code" in refusal(f"{ARCH}:{tmp_path}/w.pt")


def test_wrong_tensors(tmp_path: Path) -> None:
    path, good = tmp_path / "w.safetensors", weights()

    def message(change: dict[str, Tensor], drop: str = "") -> str:
        tensors = {n: t for n, t in (good | change).items() if n != drop}
        save_file(tensors, path)
        return refusal(f"{ARCH}-quickgelu:{path}")

    assert "missing visual.proj" in message({}, drop="visual.proj")
    assert "superfluous other" in message({"other": torch.ones(1)})
    assert "of shape [3, 3]" in message({"text_projection": torch.ones(3, 3)})
    longer = torch.ones(10, 64)  # open_clip alone would silently interpolate it
    assert "of shape [10, 64]" in message({"visual.positional_embedding": longer})
    assert "NaN or infinity" in message({"ln_final.bias": torch.full((64,), torch.nan)})


@pytest.mark.parametrize("drop", ["ln_final.weight", "visual.positional_embedding", "visual.proj"])
def test_not_in_openai_layout(tmp_path: Path, drop: str) -> None:
    save_file({n: t for n, t in weights().items() if n != drop}, tmp_path / "w.safetensors")
    assert "OpenAI's layout" in refusal(f"openai:{tmp_path}/w.safetensors")


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"x")
    assert "ends in .safetensors" in refusal(f"openai:{tmp_path}/w.h5")


def archive(tensors: dict[str, Tensor], path: Path) -> None:
    """A TorchScript archive with these weights, like OpenAI's releases."""

    def fill(module: nn.Module, prefix: str) -> nn.Module:
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                first, _, rest = name.removeprefix(prefix).partition(".")
                if not rest:
                    module.register_buffer(first, tensor)
                elif not hasattr(module, first):
                    module.add_module(first, fill(nn.Module(), f"{prefix}{first}."))
        return module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(fill(nn.Module(), "")), path)
