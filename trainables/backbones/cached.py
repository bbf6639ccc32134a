"""Published weights that other programs have downloaded to this machine."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from trainables.core.files import expanded

_KNOWN: dict[str, tuple[str, str]] = {
    "ViT-B-16": ("ViT-B-16.pt", "timm/vit_base_patch16_clip_224.openai"),
    "ViT-L-14": ("ViT-L-14.pt", "timm/vit_large_patch14_clip_224.openai"),
    "ViT-B-32": ("ViT-B-32.pt", "timm/vit_base_patch32_clip_224.openai"),
    "ViT-B-32:laion2b_s34b_b79k": ("", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
}
"""Specification -> file in `~/.cache/clip` (OpenAI's and open_clip's downloads) and repository in
the Hugging Face cache. The model of the papers comes first: ViT-L-14 is more accurate, and about
five times as expensive."""
_KINDS = (".safetensors", ".bin")


def cached_backbone() -> str:
    """Return the specification of the first known model whose weights are cached; empty if there is
    none."""
    clip, hub = Path.home() / ".cache" / "clip", _hub_cache()
    for spec, (file, repository) in _KNOWN.items():
        if file and os.path.isfile(clip / file):
            return f"{spec}:{clip / file}"
        snapshots = hub / f"models--{repository.replace('/', '--')}" / "snapshots"
        # Not `Path.glob`, which raises where this user may not look.
        files = glob.glob(f"{glob.escape(str(snapshots))}/*/open_clip_*.*")
        if any(os.path.exists(file) for file in files if file.endswith(_KINDS)):
            return spec
    return ""


def _hub_cache() -> Path:
    """The folder of the Hugging Face cache, by its environment variables."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{home}/huggingface")
    return expanded(os.environ.get("HF_HUB_CACHE", f"{home}/hub"))
