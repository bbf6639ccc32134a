"""The layout of model folders, and the parts of a backbone's specification."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from trainables.backbones.base import Backbone, BackboneError

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
