"""A model as a folder in open_clip's layout, which `local-dir:DIR` opens, here and in open_clip."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from trainables.backbones.base import Backbone, BackboneError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
MERGES_FILE = "bpe_merges.txt.gz"


def write_folder(backbone: Backbone, folder: Path) -> None:
    """Configuration, weights and, where it is the model's own, the vocabulary, into `folder`,
    which is there; raises `BackboneError` for what is no model, and `OSError`."""
    if not backbone.architecture:
        raise BackboneError(
            f"'{backbone.name}' must have towers to be written as a model, and it holds none: use "
            "a backbone that encodes images"
        )
    transform = asdict(backbone.preprocess)
    del transform["image_size"]  # the architecture says it
    # The modules decide what runs, not a name or a tag: it is written out.
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
