"""Export formats: which models fit, and how each is written."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from search.exporting.model import Model
from search.exporting.network import IMAGES, LOGITS, NoGraphError
from trainables.backbones.bundle import FeatureBackbone
from trainables.backbones.layout import write_folder
from trainables.methods.masking.masks import FORMAT as MASKS

CLASSIFIER = "classifier.safetensors"
_SERVED = Path(__file__).with_name("served.py")  # the code that travels with an MLflow model
_SINGLE = 1 << 30  # bytes of weights: an ONNX file may hold 2 GiB, larger ones come in two files
_ONNX = ("onnx", "onnxscript", "onnxruntime")

Card = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One way to write a model."""

    help: str
    """A short description."""
    write: Callable[[Model, Card, Path, Path], None]
    """Writes a model with its card to an empty folder; the last folder is for temporary files."""
    refusal: Callable[[Model], str]
    """Returns why a model cannot be written, or an empty text."""


def unfit(model: Model, kind: str) -> str:
    """Return why the model cannot be written in this format, with the formats that fit; empty if it
    can."""
    why = FORMATS[kind].refusal(model)
    if not why:
        return ""
    fit = [name for name, other in FORMATS.items() if not other.refusal(model)]
    single = ""
    if model.artifact.trial.members:
        single = (
            " Or make the best single trial the result: python -m search.run --resume "
            f"{model.artifact.config.name} --select best."
        )
    return (
        f"--format {kind} does not fit this trial: {why}. Formats that do: {', '.join(fit)}."
        f"{single}"
    )


def _fits(model: Model) -> str:
    del model
    return ""


def _no_masks(model: Model) -> str:
    if model.content[1].get("format") == MASKS:
        return ""
    return f"the method {model.artifact.trial.methods} does not learn masks alone"


def _no_tower(model: Model) -> str:
    if isinstance(model.task.backbone, FeatureBackbone):
        return f"'{model.artifact.task.backbone}' holds features and has no image tower"
    return ""


def _not_mergeable(model: Model) -> str:
    if why := _no_tower(model):
        return why
    if model.merged is not None:
        return ""
    if model.trained.method.linear_head() is not None:
        return (
            f"the method {model.artifact.trial.methods} adds a constant to the image features, and "
            f"no layer of '{model.artifact.task.backbone}' can hold it"
        )
    return (
        f"the method {model.artifact.trial.methods} is more than a CLIP and a linear classifier of "
        "its image features"
    )


def _no_graph(model: Model) -> str:
    if why := _no_tower(model):
        return why
    try:
        model.graph  # noqa: B018 - computed once, and written later
    except NoGraphError as error:
        return (
            f"the method {model.artifact.trial.methods} cannot be written as one graph for any "
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
    tensors, metadata = model.content
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
        _save_mlflow_model(network, card, folder, beside)


def _save_mlflow_model(network: Path, card: dict[str, Any], folder: Path, beside: Path) -> None:
    """Write a `.pt2` file as an MLflow model to `folder`, which is empty, with signature, example
    and requirements, and without a pickle. `beside` is for temporary files."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    written = beside / "card.json"
    written.write_text(json.dumps(card), encoding="utf-8")
    side = card["backbone"]["preprocess"]["image_size"]
    example = pd.DataFrame({"image": [np.full((side, side, 3), 128, np.uint8).tolist()]})
    # No inputs: to check them, MLflow makes a table, into which pixels do not fit.
    signature = ModelSignature(
        outputs=Schema(
            [
                ColSpec(DataType.string, "class"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about its next version
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(_SERVED),
            artifacts={"network": str(network), "card": str(written)},
            signature=signature,
            input_example=example,
            pip_requirements=[_pinned(name) for name in ("torch", "numpy", "pandas", "pillow")],
            metadata={name: card[name] for name in ("sweep", "trial", "method", "dataset")},
        )


def _pinned(package: str) -> str:
    """The package with its version, without the suffix of this machine's build."""
    return f"{package}=={version(package).partition('+')[0]}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress output and warnings of libraries."""
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield


FORMATS: dict[str, Format] = {
    "artifact": Format("what the method learned, in its own format", _write_artifact, _fits),
    "mask": Format("the masks, one bit per weight", _write_artifact, _no_masks),
    "merged": Format(
        "a CLIP in open_clip's layout with all folded in, and its classifier",
        _write_merged,
        _not_mergeable,
    ),
    "torch": Format("images to logits, a .pt2 file of torch.export", _write_torch, _no_graph),
    "onnx": Format("the same as ONNX", _write_onnx, _no_onnx),
    "mlflow": Format("an MLflow model: images to class names", _write_mlflow, _no_graph),
}
"""Formats by their names."""
