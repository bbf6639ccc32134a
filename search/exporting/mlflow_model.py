"""An exported network as an MLflow model, with code of its own."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CODE = Path(__file__).with_name("served.py")
"""What travels with the model."""


def write_mlflow(network: Path, card: dict[str, Any], folder: Path, beside: Path) -> None:
    """The MLflow model in `folder`, which is empty, from a `.pt2` file; `beside` is a folder for
    what is on the way. With signature, example and requirements, and without a pickle."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    written = beside / "card.json"
    written.write_text(json.dumps(card), encoding="utf-8")
    side = card["backbone"]["preprocess"]["image_size"]
    example = pd.DataFrame({"image": [np.full((side, side, 3), 128, np.uint8).tolist()]})
    # None of the inputs: to check any, MLflow makes a table of them, which pixels do not fit into.
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
        warnings.simplefilter("ignore")  # MLflow's own, about its next version
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(CODE),
            artifacts={"network": str(network), "card": str(written)},
            signature=signature,
            input_example=example,
            pip_requirements=[_pinned(name) for name in ("torch", "numpy", "pandas", "pillow")],
            metadata={name: card[name] for name in ("sweep", "trial", "method", "dataset")},
        )


def log_probabilities(folder: Path, images: Sequence[Tensor]) -> Tensor:
    """The exported model's answers for uint8 [3, h, w] images: log p, float64 [n, c]."""
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(folder))
    pixels = [image.permute(1, 2, 0).numpy() for image in images]
    answers = model.predict(pd.DataFrame({"image": pixels}))
    return torch.tensor(np.stack(answers["probabilities"].to_list())).log()


def _pinned(package: str) -> str:
    """With the version that it was checked with, whatever the build for this machine is called."""
    return f"{package}=={version(package).partition('+')[0]}"
