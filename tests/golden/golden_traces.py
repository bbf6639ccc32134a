"""Locations of the recorded traces, and the mapping of their names to ours."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.data.prompts import PromptSet, prompt_set
from trainables.load_backbone import load_backbone

FOLDER = Path(
    os.environ.get("GOLDEN_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "golden")
)

DATASETS = {
    "ImageNet": "imagenet",
    "ImageNetV2": "imagenet_v2",
    "ImageNetSketch": "imagenet_sketch",
    "ImageNetA": "imagenet_a",
    "ImageNetR": "imagenet_r",
    "Caltech101": "caltech101",
    "OxfordPets": "oxford_pets",
    "StanfordCars": "stanford_cars",
    "OxfordFlowers": "oxford_flowers",
    "Food101": "food101",
    "FGVCAircraft": "fgvc_aircraft",
    "SUN397": "sun397",
    "DescribableTextures": "dtd",
    "EuroSAT": "eurosat",
    "UCF101": "ucf101",
}
"""The authors' names -> our registry names."""

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])]
"""Tolerances for the second: 1e-3, without TF32."""


def runs(file: str) -> list[Any]:
    """Names of the recorded runs in `file`: one test per run, or one test skipped with a reason."""
    names = [name for name, value in index(file).items() if isinstance(value, dict)]
    reason = f"no {file} in {FOLDER}: set GOLDEN_DIR to the folder of traces"
    return names or [pytest.param("none", marks=pytest.mark.skip(reason=reason))]


@cache
def index(file: str) -> dict[str, Any]:
    """Content of a JSON file, or an empty dictionary if the file does not exist."""
    path = FOLDER / file
    return json.loads(path.read_text()) if path.is_file() else {}


def trace(name: str) -> dict[str, np.ndarray]:
    """All arrays in one file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def setting(run: dict[str, Any], key: str) -> Any:
    """A run's own value, or the folder's default."""
    return run.get(key, index("taskres.json").get(key, index("ramt.json").get(key)))


@cache
def backbone(kind: str, device: str) -> Backbone:
    """The recorded model; one copy per device."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return load_backbone(f"openai:{FOLDER / f'clip_{kind}.npz'}", device)


@cache
def images(kind: str, device: str) -> dict[str, Tensor]:
    """Return x_train, y_train, x_test, y_test."""
    return {k: torch.from_numpy(v).to(device) for k, v in trace(f"images_{kind}").items()}


def ramt_prompts(run: dict[str, Any]) -> PromptSet:
    """One template around cleaned class names."""
    names = prompt_set("", setting(run, "classes"), "single").class_names
    return PromptSet(names, (setting(run, "template"),))


def taskres_prompts(name: str, run: dict[str, Any]) -> list[PromptSet]:
    """The released code's templates around raw class names: one candidate, or several on ImageNet.
    That code appends ImageNet's eighth template to a module-level list whenever it builds a model,
    so the n-th ImageNet run of a recording process has it n times."""
    dataset = DATASETS[name.split("_", 2)[2]]
    prompts = prompt_set(dataset, setting(run, "classes"), "reference")
    if not dataset.startswith("imagenet"):
        return [prompts]
    last = prompts.templates[-1:]
    copies = range(sum("ImageNet" in other for other in index("taskres.json")))
    return [replace(prompts, templates=prompts.templates + last * n) for n in copies]


def generator(run: dict[str, Any]) -> torch.Generator:
    """The generator that `uniform_generator` describes in words."""
    match = re.search(r"manual_seed\((\d+)\)", run["uniform_generator"])
    assert match, f"cannot read the seed from {run['uniform_generator']!r}"
    return torch.Generator().manual_seed(int(match[1]))


def zero_shot(model: Backbone, class_features: Tensor, batch: Tensor) -> Tensor:
    """Zero-shot logits [b, c] of preprocessed images."""
    text = functional.normalize(class_features, dim=-1)
    return model.logit_scale * functional.normalize(model.encode_image(batch), dim=-1) @ text.T


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, in units of the largest wanted magnitude."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
