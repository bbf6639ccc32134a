"""Computes the logits of an export, in a process without the one that wrote it.

For a network (`torch`, `onnx`, `mlflow`), only this file and `child_process.py` of the project are
loaded.

Notation: n images, c classes, s image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

BATCH = 64
INPUTS, VIEWS, ROWS, OPENING = "inputs", "views", "rows", "opening"
"""Tensors of a probe: preprocessed images float32 [n, 3, s, s], the same as uint8, their rows among
the validation images; and its metadata, the `TrainingSpec`."""
ORIGINAL = "original/"
"""Prefix of numbered images in a probe, in their original size, uint8 [3, h, w]."""
LOGITS, ORIGINALS = "logits", "originals"
"""Tensors of an answer: logits (or log probabilities) [n, c] of the inputs and the originals."""

Answer = dict[str, Tensor]


def ask_torch(folder: Path, probe: Path) -> Answer:
    """Run a `.pt2` file with torch alone."""
    network = torch.export.load(folder / "model.pt2").module()
    parts = load_file(probe)[INPUTS].split(BATCH)
    return {LOGITS: torch.cat([network(part) for part in parts])}


def ask_onnx(folder: Path, probe: Path) -> Answer:
    """Run an `.onnx` file with ONNX Runtime alone."""
    network = open_onnx(folder)
    return {LOGITS: torch.cat([network(part) for part in load_file(probe)[INPUTS].split(BATCH)])}


def open_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    """Open an `.onnx` file on the CPU: images float32 [b, 3, s, s] -> logits [b, c]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (name,) = (given.name for given in session.get_inputs())
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def ask_mlflow(folder: Path, probe: Path) -> Answer:
    """Run an MLflow model with its own code."""
    tensors = load_file(probe)
    count = sum(name.startswith(ORIGINAL) for name in tensors)
    originals = [tensors[f"{ORIGINAL}{number}"] for number in range(count)]
    return {
        LOGITS: _log_probabilities(folder, list(tensors[VIEWS])),
        ORIGINALS: _log_probabilities(folder, originals),
    }


def _log_probabilities(folder: Path, images: Sequence[Tensor]) -> Tensor:
    """uint8 [3, h, w] images -> log probabilities, float64 [n, c]."""
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(folder))
    pixels = [image.permute(1, 2, 0).numpy() for image in images]
    answers = model.predict(pd.DataFrame({"image": pixels}))
    return torch.tensor(np.stack(answers["probabilities"].to_list())).log()


def ask_merged(folder: Path, probe: Path) -> Answer:
    """Run a folder in open_clip's layout with its classifier."""
    from trainables.load_backbone import load_backbone

    backbone = load_backbone(f"local-dir:{folder}")
    classifier = load_file(folder / "classifier.safetensors")
    parts = load_file(probe)[INPUTS].split(BATCH)
    unit = functional.normalize(torch.cat([backbone.encode_image(p) for p in parts]), dim=-1)
    return {LOGITS: functional.linear(unit, classifier["weight"], classifier.get("bias"))}


def ask_artifact(folder: Path, probe: Path) -> Answer:
    """Run a method's artifact with the method."""
    from search.exporting.model import TrainingSpec

    (path,) = folder.glob("*.safetensors")
    with safe_open(probe, framework="pt") as file:
        spec = TrainingSpec.from_json(file.metadata()[OPENING])
        rows = file.get_tensor(ROWS)
    with safe_open(path, framework="pt") as file:
        trained = spec.open(spec.encoded_task())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        trained.load_artifact(tensors, file.metadata())
    return {LOGITS: trained.logits(trained.val)[rows]}


ASK: Mapping[str, Callable[[Path, Path], Answer]] = {
    "artifact": ask_artifact,
    "mask": ask_artifact,
    "merged": ask_merged,
    "torch": ask_torch,
    "onnx": ask_onnx,
    "mlflow": ask_mlflow,
}
"""Functions by format: folder and probe -> answer."""


@torch.no_grad()
def ask(kind: str, folder: str, probe: str, answer: str) -> None:
    """Run the export in `folder` on the images of `probe`, and write its logits to `answer`."""
    found = ASK[kind](Path(folder), Path(probe))
    save_file({name: tensor.double().contiguous() for name, tensor in found.items()}, answer)
