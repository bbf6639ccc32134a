"""Ask a written export what it says, in a process that knows nothing of the one that wrote it.

For a network (`torch`, `onnx`, `mlflow`), this file and `child_process.py` are all that is loaded
of the project.

Notation: n images, c classes, s image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

BATCH = 64
INPUTS, VIEWS, ROWS, OPENING = "inputs", "views", "rows", "opening"
"""In a probe: preprocessed images float32 [n, 3, s, s], the same as uint8, their rows among the
validation images, and (among the metadata) how the training is opened."""
ORIGINAL = "original/"
"""In a probe, before a number: an image as it comes, uint8 [3, h, w]."""
LOGITS, ORIGINALS = "logits", "originals"
"""In an answer: logits (or log probabilities) [n, c] of the inputs, and of the originals."""

Answer = dict[str, Tensor]


def ask_torch(folder: Path, probe: Path) -> Answer:
    """A `.pt2` file, by torch alone."""
    network = torch.export.load(folder / "model.pt2").module()
    parts = load_file(probe)[INPUTS].split(BATCH)
    return {LOGITS: torch.cat([network(part) for part in parts])}


def ask_onnx(folder: Path, probe: Path) -> Answer:
    """An `.onnx` file, by ONNX Runtime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (name,) = (given.name for given in session.get_inputs())
    parts = load_file(probe)[INPUTS].split(BATCH)
    answers = [torch.from_numpy(session.run(None, {name: part.numpy()})[0]) for part in parts]
    return {LOGITS: torch.cat(answers)}


def ask_mlflow(folder: Path, probe: Path) -> Answer:
    """An MLflow model, by the code that travels with it."""
    from search.exporting.mlflow_model import log_probabilities

    tensors = load_file(probe)
    count = sum(name.startswith(ORIGINAL) for name in tensors)
    originals = [tensors[f"{ORIGINAL}{number}"] for number in range(count)]
    return {
        LOGITS: log_probabilities(folder, list(tensors[VIEWS])),
        ORIGINALS: log_probabilities(folder, originals),
    }


def ask_merged(folder: Path, probe: Path) -> Answer:
    """A folder in open_clip's layout with a classifier beside it."""
    from trainables.load_backbone import load_backbone

    backbone = load_backbone(f"local-dir:{folder}")
    classifier = load_file(folder / "classifier.safetensors")
    parts = load_file(probe)[INPUTS].split(BATCH)
    unit = functional.normalize(torch.cat([backbone.encode_image(p) for p in parts]), dim=-1)
    return {LOGITS: functional.linear(unit, classifier["weight"], classifier.get("bias"))}


def ask_artifact(folder: Path, probe: Path) -> Answer:
    """A method's own file, by the method."""
    from search.exporting.model import Opening

    (path,) = folder.glob("*.safetensors")
    with safe_open(probe, framework="pt") as file:
        opening = Opening.from_json(file.metadata()[OPENING])
        rows = file.get_tensor(ROWS)
    with safe_open(path, framework="pt") as file:
        training = opening.open(opening.bench())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        training.load_artifact(tensors, file.metadata())
    return {LOGITS: training.logits(training.val)[rows]}


ASK: Mapping[str, Callable[[Path, Path], Answer]] = {
    "artifact": ask_artifact,
    "mask": ask_artifact,
    "merged": ask_merged,
    "torch": ask_torch,
    "onnx": ask_onnx,
    "mlflow": ask_mlflow,
}
"""By format: folder and probe -> answer."""


@torch.no_grad()
def ask(kind: str, folder: str, probe: str, answer: str) -> None:
    """Write the answer of the export of this format in `folder` to the file `answer`."""
    found = ASK[kind](Path(folder), Path(probe))
    save_file({name: tensor.double().contiguous() for name, tensor in found.items()}, answer)
