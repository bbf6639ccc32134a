"""Opens a trained model by name, to classify images with it.

A name is a sweep's, a folder that `search.export` has written, or `models:/NAME@ALIAS` or
`models:/NAME/VERSION` in MLflow's registry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.export.passes import move_to_device_pass

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.core.sweep_folder import find_sweep
from search.exporting.card import CARD
from search.exporting.classifier import Classifier
from search.exporting.formats import CLASSIFIER
from search.exporting.model import BEST, TrainingSpec, find_artifact, open_model
from search.exporting.network import LinearNetwork, network
from search.exporting.registry import RegistryError, download
from search.tracking.uri import uri_afterwards
from trainables.backbones.base import Backbone, BackboneError, Preprocess
from trainables.backbones.bundle import FeatureBackbone
from trainables.core.files import expanded, read_text, temporary_folder
from trainables.core.storage import LocalStorage
from trainables.core.tensor_file import read_tensors
from trainables.core.text import shortened
from trainables.data.base import DataError, distinct
from trainables.load_backbone import load_backbone
from trainables.methods.base import Head, MethodError
from trainables.training import TrainedModel
from trainables.trial import Episode, TaskSpec, TrialConfig

REGISTERED = "models:/"
"""Prefix of a registered model's address."""
Card = Mapping[str, Any]
Network = Callable[[Tensor], Tensor]


def open_classifier(
    name: str,
    storage: str,
    trial: str = BEST,
    episode: str = "",
    data: str = "",
    device: str = "auto",
    tracking_uri: str = "",
) -> Classifier:
    """Open a trained model.

    `trial` and `episode` choose among a sweep's models. `device` is auto, cpu or cuda; auto uses a
    GPU if there is one. Raises `UsageError`, `StorageError`, and `RegistryError` for a registered
    model that MLflow does not have.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError([f"--device must be auto, cpu or cuda, got '{device}'."])
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            ["--device cuda requires a CUDA device, and torch finds none. Omit the option."]
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith(REGISTERED):
        with temporary_folder() as temporary:
            uri = uri_afterwards(tracking_uri, SweepConfig(storage=storage))
            folder = download(name, uri, temporary)
            return _of_export(folder / "artifacts", "torch", data, device)
    folder = expanded(name)
    if (folder / CARD).is_file():
        return _of_export(folder, str(_card(folder)["kind"]), data, device)
    if "/" in name:
        name, storage = folder.name, str(folder.parent)
    sweep = find_sweep(name, storage)
    artifact = find_artifact(sweep, trial, episode)
    model = open_model(artifact, data or sweep.config.data, device)
    chosen = artifact.episode
    names = model.task.source.dataset(chosen.dataset, chosen.half).class_names
    return _of_training(model.trained, distinct(names), device)


def _of_training(trained: TrainedModel, classes: tuple[str, ...], device: str) -> Classifier:
    backbone = trained.backbone
    if isinstance(backbone, FeatureBackbone):
        raise UsageError(
            [
                f"Images need an image model, and '{backbone.name}' holds features only. Use a "
                "sweep that was run on images."
            ]
        )
    return Classifier(classes, backbone.preprocess, network(trained).to(device), device)


def _of_export(folder: Path, kind: str, data: str, device: str) -> Classifier:
    try:
        card = _card(folder)
        if kind in ("artifact", "mask"):
            return _of_training(_training(folder, card, data, device), _classes(card), device)
        if kind == "onnx":
            device = "cpu"  # the runtime's provider for any machine
        opened = _OPEN[kind](folder, device)
        described = card["backbone"]["preprocess"]
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in described.items()
        }
        return Classifier(_classes(card), Preprocess(**plain), opened, device)
    except (BackboneError, DataError, MethodError) as error:
        raise UsageError([str(error)]) from error
    except Exception as error:  # whatever damaged files make the libraries raise
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            [
                f"An export must be complete, and '{folder}' cannot be used "
                f"({type(error).__name__}: {error}). Export the model again."
            ]
        ) from error


def _card(folder: Path) -> Card:
    try:
        found: Card = json.loads(read_text(folder / CARD))
        if not (isinstance(found, dict) and isinstance(found.get("kind"), str)):
            raise ValueError("it does not describe an export")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            [f"'{folder / CARD}' must be readable, and is not ({error}). Export the model again."]
        ) from error
    return found


def _classes(card: Card) -> tuple[str, ...]:
    return tuple(card["classes"])


def _training(folder: Path, card: Card, data: str, device: str) -> TrainedModel:
    """The training of an artifact, whose backbone and data must be on this machine."""
    (path,) = folder.glob("*.safetensors")
    content = read_tensors(LocalStorage(folder), path.name)
    if content is None:
        raise ValueError(f"'{path}' is no safetensors file")
    dataset, shots, seed, half = (card[name] for name in ("dataset", "shots", "seed", "half"))
    if "task" in card:
        task = TaskSpec.from_dict(card["task"])
    else:  # a card of an earlier release
        protocol: Any = "few-shot" if half == "all" else "base-to-new"
        task = TaskSpec((dataset,), card["backbone"]["name"], (shots,), (seed,), protocol)
    config = TrialConfig.from_dict(card["configuration"])
    episode = Episode(dataset, shots, seed, half)
    spec = TrainingSpec(config, task, episode, data, "")
    encoded = spec.encoded_task(device)
    _check_backbone(card, encoded.backbone)
    prompts = encoded.classes(dataset, half, config.method_config.prompts).prompts
    _check_texts(card, prompts.texts() if prompts else None)
    trained = spec.open(encoded)
    trained.load_artifact(*content)
    return trained


def _check_backbone(card: Card, backbone: Backbone) -> None:
    wanted = card["backbone"]["fingerprint"]
    if wanted != backbone.fingerprint:
        raise UsageError(
            [
                f"An artifact needs the backbone that it was trained on ({wanted[:12]}), and "
                f"'{backbone.name}' is another one ({backbone.fingerprint[:12]}). Restore it, or "
                "use --format merged or torch, which contain it."
            ]
        )


def _check_texts(card: Card, texts: Sequence[Sequence[str]] | None) -> None:
    """What was learned belongs to the texts of the classes that it was trained with."""
    wanted, found = (json.dumps(given) for given in (card["prompts"], texts))
    if wanted != found:
        raise UsageError(
            [
                f"An artifact needs the texts of its classes ({shortened(wanted)}), and they are "
                f"{shortened(found)}. Restore the data set's class names and prompts, or use "
                "--format merged or torch, which contain the texts."
            ]
        )


def _open_merged(folder: Path, device: str) -> Network:
    classifier = load_file(folder / CLASSIFIER, device)
    visual = load_backbone(f"local-dir:{folder}", device).visual
    return LinearNetwork(visual, Head(classifier["weight"], classifier.get("bias"))).eval()


def _open_torch(folder: Path, device: str) -> Network:
    path = folder / "model.pt2"
    if not is_zipfile(path):  # for which torch would log two tracebacks
        raise ValueError(f"'{path}' is missing or damaged")
    graph = torch.export.load(path)
    moved = graph if device == "cpu" else move_to_device_pass(graph, device)
    found: Network = moved.module()
    return found


def _open_onnx(folder: Path, device: str) -> Network:
    del device
    from search.exporting.check import open_onnx

    return open_onnx(folder)


_OPEN: Mapping[str, Callable[[Path, str], Network]] = {
    "merged": _open_merged,
    "torch": _open_torch,
    "onnx": _open_onnx,
    "mlflow": lambda folder, device: _open_torch(folder / "artifacts", device),
}
"""Functions by format: folder and device -> network."""
__all__ = ["REGISTERED", "RegistryError", "open_classifier"]
