"""The formats that can be exported: which models fit, and how each is written."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from search.exporting.mlflow_model import write_mlflow
from search.exporting.model import Model
from search.exporting.network import IMAGES, LOGITS, NoGraphError
from trainables.backbones.bundle import FeatureBackbone
from trainables.backbones.layout import write_folder
from trainables.methods.masking.masks import FORMAT as MASKS

CLASSIFIER = "classifier.safetensors"
_SINGLE = 1 << 30  # bytes of weights: an ONNX file may hold 2 GiB, larger ones come in two files
_ONNX = ("onnx", "onnxscript", "onnxruntime")

Card = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One way to write a model."""

    help: str
    """What it is, in a few words."""
    write: Callable[[Model, Card, Path, Path], None]
    """Model, card, an empty folder to fill, and a folder for what is on the way."""
    refusal: Callable[[Model], str]
    """Why a model does not fit; empty where it does."""


def unfit(model: Model, kind: str) -> str:
    """Why the model cannot be written in this format, and what it can be written in; else empty."""
    why = FORMATS[kind].refusal(model)
    if not why:
        return ""
    fit = [name for name, other in FORMATS.items() if not other.refusal(model)]
    return f"--format {kind} does not fit this trial: {why}. Formats that do: {', '.join(fit)}."


def _fits(model: Model) -> str:
    del model
    return ""


def _no_masks(model: Model) -> str:
    if model.artifact[1].get("format") == MASKS:
        return ""
    return f"the method {model.chosen.trial.methods} learns more than masks, or none"


def _no_tower(model: Model) -> str:
    if isinstance(model.bench.backbone, FeatureBackbone):
        return f"'{model.chosen.task.backbone}' holds features, and no network that reads images"
    return ""


def _not_mergeable(model: Model) -> str:
    if why := _no_tower(model):
        return why
    if model.merged is not None:
        return ""
    if model.training.method.linear_head() is not None:
        return (
            f"the method {model.chosen.trial.methods} adds a constant to the image features, which "
            f"the image tower of '{model.chosen.task.backbone}' has no layer for"
        )
    return (
        f"the method {model.chosen.trial.methods} is more than a CLIP and a linear classifier of "
        "its image features"
    )


def _no_graph(model: Model) -> str:
    if why := _no_tower(model):
        return why
    try:
        model.graph  # noqa: B018 - computed once, and written later
    except NoGraphError as error:
        return (
            f"the method {model.chosen.trial.methods} cannot be written as one graph for any "
            f"number of images ({error})"
        )
    return ""


def _no_onnx(model: Model) -> str:
    missing = [package for package in _ONNX if find_spec(package) is None]
    if missing and not _no_tower(model):
        return f"{', '.join(missing)} must be installed (pip install '.[export]')"
    return _no_graph(model)


def _write_artifact(model: Model, card: Card, folder: Path, beside: Path) -> None:
    del beside
    tensors, metadata = model.artifact
    save_file(tensors, folder / "artifact.safetensors", metadata | {"card": json.dumps(card)})


def _write_merged(model: Model, card: Card, folder: Path, beside: Path) -> None:
    del beside
    assert model.merged is not None, "the caller checks whether the format fits"
    backbone, linear_head = model.merged
    write_folder(backbone, folder)
    classifier: dict[str, Tensor] = {"weight": linear_head.weight.detach().contiguous()}
    if linear_head.bias is not None:
        classifier["bias"] = linear_head.bias.detach().contiguous()
    metadata = {
        "format": "few-shot-classifier",
        "format_version": "1",
        "formula": "logits = weight @ (z / |z|) + bias, z = encode_image(images)",
        "classes": json.dumps(card["classes"]),
        "card": json.dumps(card),
    }
    save_file(classifier, folder / CLASSIFIER, metadata)


def _write_torch(model: Model, card: Card, folder: Path, beside: Path) -> None:
    del beside
    extra = {"card.json": json.dumps(card)}
    torch.export.save(model.graph, folder / "model.pt2", extra_files=extra)


def _write_onnx(model: Model, card: Card, folder: Path, beside: Path) -> None:
    del beside
    path = folder / "model.onnx"
    graph = model.graph
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict.values())
    with _silence():
        written: Any = torch.onnx.export(
            graph, dynamo=True, input_names=[IMAGES], output_names=[LOGITS], verbose=False
        )
        written.model.metadata_props["card"] = json.dumps(card)
        written.save(str(path), external_data=size > _SINGLE)


def _write_mlflow(model: Model, card: Card, folder: Path, beside: Path) -> None:
    network = beside / "model.pt2"
    torch.export.save(model.graph, network)
    with _silence():
        write_mlflow(network, card, folder, beside)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No reports and no warnings of what is being called."""
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield


FORMATS: dict[str, Format] = {
    "artifact": Format("what the method learned, as it stores it", _write_artifact, _fits),
    "mask": Format("the masks, one bit a weight", _write_artifact, _no_masks),
    "merged": Format(
        "a CLIP in open_clip's layout with everything folded in, and its classifier",
        _write_merged,
        _not_mergeable,
    ),
    "torch": Format("images to logits as a .pt2 of torch.export", _write_torch, _no_graph),
    "onnx": Format("the same as ONNX", _write_onnx, _no_onnx),
    "mlflow": Format("an MLflow model: images to class names", _write_mlflow, _no_graph),
}
"""By the name that `--format` takes."""
