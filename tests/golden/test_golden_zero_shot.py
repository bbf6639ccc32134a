"""Text features and zero-shot logits against the authors' code."""

import pytest
import torch
from golden_traces import DEVICES, FOLDER, backbone, images, index, ramt_prompts, trace, zero_shot
from torch.nn import functional

from trainables.data.prompts import class_features

KINDS = sorted(path.stem.removesuffix("_zero_shot") for path in FOLDER.glob("*_zero_shot.npz"))
MISSING = pytest.param("none", marks=pytest.mark.skip(reason=f"no traces in {FOLDER}"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS or [MISSING])
def test_features_and_logits(kind: str, device: str) -> None:
    recorded, model = trace(f"{kind}_zero_shot"), backbone(kind, device)
    tolerance = 3e-5 if device == "cpu" else 1e-3
    features = class_features(model, ramt_prompts({}))
    torch.testing.assert_close(
        functional.normalize(features, dim=-1).cpu(),
        torch.from_numpy(recorded["text_features"]),
        atol=tolerance,
        rtol=0,
    )
    logits = zero_shot(model, features, images(kind, device)["x_test"])
    torch.testing.assert_close(
        logits.cpu(), torch.from_numpy(recorded["zero_shot_logits"]), atol=tolerance, rtol=1e-6
    )
    correct = logits.argmax(dim=-1) == images(kind, device)["y_test"]
    for name, run in index("ramt.json").items():
        if isinstance(run, dict) and name.startswith(f"{kind}_"):
            assert float(correct.double().mean()) == pytest.approx(run["zero_shot_accuracy"])
