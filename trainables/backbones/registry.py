"""Backbones by specification, and model folders in open_clip's layout."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.bundle import open_bundle_backbone
from trainables.data.bundle import PREFIX

BACKBONES: dict[str, Path] = {
    "tiny": Path(__file__).parent / "tiny",
}
"""Models that are part of this project: name -> folder in open_clip's layout."""
HUB = "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHTS_FILES = (
    WEIGHTS_FILE,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
    "open_clip_pytorch_model.pth",
)
"""Names of the weights in a model folder; the first that exists is used."""
MERGES_FILE = "bpe_merges.txt.gz"

_MASKED = re.compile(r"(.*?\.(?:safetensors|pth\.tar(?:-\d+)?|pth|pt))@(.*)", re.DOTALL)
_TAGGED = re.compile(r"([^:@/]*:[^:@/]+@)(.+)", re.DOTALL)


def split_masks(spec: str) -> tuple[str, str] | None:
    """The masks' path and the backbone's specification; None if `spec` names no masks."""
    found = _MASKED.fullmatch(spec)
    return (found[1], found[2]) if found else None


def split_path(spec: str) -> tuple[str, str]:
    """A specification without masks -> what precedes its path (`ARCH:`, `ARCH:TAG@`), and the
    path, which may be a mere tag or name."""
    if (found := _TAGGED.fullmatch(spec)) and not Path(spec.partition(":")[2]).exists():
        return found[1], found[2]
    head, colon, path = spec.partition(":")
    return (f"{head}:", path) if colon else ("", head)


def absolute_spec(spec: str) -> str:
    """`spec` with absolute paths: workers run in other folders."""
    if spec in BACKBONES or spec.startswith(HUB):
        return spec
    if masked := split_masks(spec):
        return f"{_absolute(masked[0])}@{absolute_spec(masked[1])}"
    before, name = split_path(spec)
    path = Path(name).expanduser()
    if path.is_file() or (path.is_dir() and before in ("local-dir:", "")):
        return f"{before}{_absolute(name)}"
    return spec


def _absolute(path: str) -> str:
    """Links are kept: what the Hugging Face cache links to has names without suffixes."""
    return os.path.abspath(Path(path).expanduser())


def open_backbone(spec: str, device: torch.device | str = "cpu") -> Backbone:
    """The backbone `spec`, which names no masks, on `device`: float32, in evaluation mode,
    without gradients.

    `spec` is a name in `BACKBONES`, or one of
    `ARCH` or `ARCH:TAG` (downloaded by open_clip; `ARCH` means `ARCH:openai`),
    `ARCH:FILE` (.safetensors, .pt, .pth, .bin, .ckpt), `ARCH-gelu:FILE` (plain GELU on purpose),
    `ARCH:TAG@FILE` (a file with the activation and preprocessing of published weights),
    `openai:FILE` (a state dict in OpenAI's layout, .npz too; dimensions inferred),
    `DIR` or `local-dir:DIR` (a model folder), `hf-hub:OWNER/NAME` (one of the Hugging Face hub),
    `bundle:FILE` (features without a model, see `trainables/data/bundle.py`).

    Raises `BackboneError`.
    """
    if spec.startswith(PREFIX):
        return open_bundle_backbone(spec).to(device)
    # Here and not above: open_clip's memory is for processes that build a model.
    from trainables.backbones.specs import open_folder, open_spec

    folder = BACKBONES.get(spec)
    return (open_folder(folder, spec, True) if folder else open_spec(spec)).to(device)


def write_folder(backbone: Backbone, folder: Path) -> None:
    """Write configuration, weights and, if it is the model's own, the vocabulary into an existing
    `folder`; raises `OSError`, and `BackboneError` for a backbone without towers."""
    if not backbone.architecture:
        raise BackboneError(
            f"'{backbone.name}' must have towers to be written as a model, and it has none: use "
            "a backbone that encodes images"
        )
    transform = asdict(backbone.preprocess)
    del transform["image_size"]  # part of the architecture
    # The modules decide what runs, not a name or a tag: it is written explicitly.
    architecture = dict(backbone.architecture) | {"quick_gelu": backbone.activation == "quick_gelu"}
    content = {"model_cfg": architecture, "preprocess_cfg": transform}
    text = json.dumps(content, indent=1) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in backbone.model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    if backbone.merges is not None:
        shutil.copyfile(backbone.merges, folder / MERGES_FILE)
    # Of Hugging Face: the tokenizer's files, and the text tower's configuration.
    if save := getattr(backbone.tokenizer, "save_pretrained", None):
        save(folder)
    if tower := backbone.architecture["text_cfg"].get("hf_model_name"):
        config: Any = backbone.model.get_submodule("text").config
        config.save_pretrained(folder / tower)
