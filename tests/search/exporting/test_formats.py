"""Every method in every format: what fits is what the documentation says, and is exact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from search.core.sweep_folder import SweepFolder
from search.exporting.card import card
from search.exporting.check import ask_merged
from search.exporting.formats import FORMATS, unfit
from search.exporting.model import Model, find_artifact, open_model
from search.exporting.network import LinearNetwork, network
from tests.search.made import made
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage
from trainables.load_backbone import load_backbone
from trainables.methods.base import MethodConfig
from trainables.methods.registry import METHODS
from trainables.methods.taskres import TaskResConfig
from trainables.trial import TaskSpec, TrialConfig

pytestmark = pytest.mark.timeout(900)

DOCS = Path(__file__).parents[3] / "docs" / "results.md"
TASK = TaskSpec(("digits",), "tiny", (2,), (1,))
OPTIM = OptimConfig(lr=2e-3, epochs=1, batch_size=32)
TOLERANCE = 1e-3


def cases() -> Iterator[tuple[str, MethodConfig]]:
    for name, method in METHODS.items():
        yield name, method.Config()
    yield "taskres", TaskResConfig(residual="image")
    yield "taskres", TaskResConfig(residual="both", learn_alpha=True)


def documented() -> dict[str, set[str]]:
    """Formats by method, from the table in the documentation."""
    rows: dict[str, set[str]] = {}
    heading: list[str] = []
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "Method":
            heading = [cell.strip("`") for cell in cells[1:]]
        elif heading and line.startswith("| `"):
            fits = {name for name, cell in zip(heading, cells[1:], strict=True) if cell == "yes"}
            rows |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), fits)
        elif heading and not line.startswith("|"):
            break
    assert heading == list(FORMATS)
    return rows


@dataclass(frozen=True)
class Trial:
    model: Model
    method: str
    folder: Path

    def written(self, kind: str) -> Path:
        folder = self.folder / kind
        folder.mkdir()
        FORMATS[kind].write(self.model, card(self.model, kind), folder, self.folder)
        return folder

    @property
    def probe(self) -> Path:
        """The preprocessed validation images, as `check` reads them."""
        path = self.folder / "probe.safetensors"
        views = self.model.trained.val.images(torch.arange(len(self.model.logits)))
        inputs = self.model.trained.backbone.preprocess.normalise(views)
        save_file({"inputs": inputs}, path)
        return path


@pytest.fixture(params=cases(), ids=lambda case: f"{case[0]}-{getattr(case[1], 'residual', '')}")
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Trial:
    """A trained trial of one method."""
    name, config = request.param
    made(tmp_path, "sweep", TrialConfig(name, "search", config, OPTIM), TASK)
    sweep = SweepFolder(LocalStorage(tmp_path / "sweep"))
    return Trial(open_model(find_artifact(sweep, "0", ""), ""), name, tmp_path)


def test_every_method_is_documented() -> None:
    assert set(documented()) == set(METHODS)


GRAPHS = {"torch", "onnx", "mlflow"}


@pytest.fixture(scope="module")
def traced() -> set[tuple[bool, bool]]:
    """Which linear classifiers on an unchanged tower have been traced: with a bias, an offset."""
    return set()


@torch.no_grad()
def test_a_method_has_the_documented_formats(trial: Trial, traced: set[tuple[bool, bool]]) -> None:
    """Supported formats reproduce the trial's logits; errors for the others name the supported
    ones. Networks that differ in numbers alone have one graph, and tracing takes long."""
    model, expected, fits = trial.model, trial.model.logits, documented()[trial.method]
    whole, plain = network(model.trained), None
    if isinstance(whole, LinearNetwork) and whole.visual is model.trained.backbone.visual:
        plain = (whole.bias is not None, whole.offset is not None)
    kinds = set(FORMATS) - (GRAPHS if plain in traced else set())
    assert {kind for kind in kinds if not FORMATS[kind].refusal(model)} == fits & kinds
    assert fits >= set(FORMATS) - kinds
    if plain not in traced:
        for kind in set(FORMATS) - fits:
            named = unfit(model, kind).rpartition("Formats that do: ")[2].rstrip(".")
            assert named.split(", ") == [other for other in FORMATS if other in fits]
        if "torch" in fits:
            whole = model.graph.module()
    if "torch" in fits:
        views = model.trained.val.images(torch.arange(len(expected)))
        found = whole(model.trained.backbone.preprocess.normalise(views))
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    if plain is not None:
        traced.add(plain)
    if "merged" in fits:
        folder = trial.written("merged")
        found = ask_merged(folder, trial.probe)["logits"]
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
        if plain is not None:  # an offset of the images is a constant in a bias of the tower
            before, after = (load_backbone(name) for name in ("tiny", f"local-dir:{folder}"))
            states = [backbone.model.state_dict() for backbone in (before, after)]
            changed = {name for name in states[0] if not states[0][name].equal(states[1][name])}
            assert changed == ({"visual.ln_post.bias"} if plain[1] else set())
