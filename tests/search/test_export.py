"""Exports of real sweeps, loaded without this project, and rejected exports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from search import predict
from search.core.sweep_folder import SweepFolder
from search.export import main
from search.exporting.formats import FORMATS, Format
from search.exporting.model import Model, find_artifact, open_model
from search.exporting.open_classifier import open_classifier
from search.exporting.verify import VerificationError, compare
from tests.search.made import made
from tests.trainables.data.bundles import tensors, write_bundle
from tests.trainables.trials import mask_trial
from trainables.backbones.base import Preprocess
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage
from trainables.images.resample import Interpolation, ResizeMode
from trainables.load_backbone import load_backbone
from trainables.methods.taskres import TaskResConfig
from trainables.trial import TaskSpec, TrialConfig

pytestmark = pytest.mark.timeout(900)

TASKRES = TrialConfig(
    "taskres",
    "search",
    TaskResConfig(residual="both"),
    OptimConfig(lr=2e-3, epochs=8, batch_size=64),
)
NETWORKS = {"torch": "rmt", "onnx": "taskres", "mlflow": "rmt", "merged": "rmt"}
"""Sweeps by the format that they are exported in, in the order of the process that loads them."""


@dataclass(frozen=True)
class Sweeps:
    """Finished sweeps of one trial each."""

    storage: Path

    def model(self, name: str, trial: str = "best", cell: str = "") -> Model:
        sweep = LocalStorage(self.storage / name)
        return open_model(find_artifact(SweepFolder(sweep), trial, cell), "")

    def copy(self, name: str, to: Path) -> Path:
        shutil.copytree(self.storage / name, to / name)
        return to / name


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """`rmt` with masks that flip, and `taskres` with a residual on the images too. Neither has been
    evaluated; `test_report.py` exports a winner."""
    storage = tmp_path_factory.mktemp("sweeps")
    task = TaskSpec(("digits",), "tiny", (4,), (1,))
    made(storage, "rmt", mask_trial(), task)
    made(storage, "taskres", TASKRES, task)
    return Sweeps(storage)


@pytest.fixture(scope="module")
def exports(sweeps: Sweeps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks by their formats."""
    folder = tmp_path_factory.mktemp("exports")
    for kind, name in NETWORKS.items():
        options = ["--trial", "0", "--format", kind, "--output", str(folder / kind)]
        assert main([name, *options, "--storage", str(sweeps.storage)]) == 0
    return folder


@pytest.fixture(scope="module")
def given(sweeps: Sweeps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation images as PNG files, and preprocessed."""
    folder = tmp_path_factory.mktemp("given")
    model = sweeps.model("rmt", "0")
    for row in range(len(model.val_images)):
        pixels = model.val_images.read(row).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{row:02}.png")
    images = model.trained.val.images(torch.arange(len(model.val_images)))
    preprocessed = model.trained.backbone.preprocess.normalise(images)
    save_file({"images": preprocessed}, folder / "images")
    return folder


@dataclass(frozen=True)
class Answer:
    """What the command said, and its exit code."""

    code: int
    out: str
    err: str


Export = Callable[..., Answer]


@pytest.fixture
def export(sweeps: Sweeps, capsys: pytest.CaptureFixture[str]) -> Export:
    def call(*options: str, storage: Path = sweeps.storage) -> Answer:
        code = main([*options, "--storage", str(storage)])
        return Answer(code, *capsys.readouterr())

    return call


ELSEWHERE = """
import sys, torch
from safetensors.torch import load_file, save_file
folder, given, out = sys.argv[1:]
images, found = load_file(f'{given}/images')['images'], {}

network = torch.export.load(f'{folder}/torch/model.pt2').module()
found['torch'], found['torch-one'] = network(images), network(images[:1])
assert not {'open_clip', 'mlflow', 'onnxruntime'} & set(sys.modules)

import json, onnxruntime
session = onnxruntime.InferenceSession(f'{folder}/onnx/model.onnx')
run = lambda x: torch.from_numpy(session.run(['logits'], {'images': x.numpy()})[0])
found['onnx'], found['onnx-one'] = run(images), run(images[:1])
card = session.get_modelmeta().custom_metadata_map['card']
assert json.loads(card)['method'] == 'taskres'

import mlflow, numpy as np, pandas as pd
from pathlib import Path
from PIL import Image
model = mlflow.pyfunc.load_model(f'{folder}/mlflow')
paths = [f'{given}/{row:02}.png' for row in range(3)]
content = [open(path, 'rb').read() for path in paths]
pixels = [np.asarray(Image.open(path)) for path in paths]
answers = [model.predict(images) for images in (
    pd.DataFrame({'image': paths}), paths, pd.DataFrame({'x': content}), content,
    pd.DataFrame({'image': pixels}), pixels, np.stack(pixels),
    pd.DataFrame({'image': [p.tolist() for p in pixels]}))]
for alone in (paths[0], Path(paths[0]), content[0], pixels[0]):
    assert model.predict(alone)['class'].to_list() == [answers[0]['class'][0]]
for nothing in ([], pd.DataFrame({'image': []})):
    nothing = model.predict(nothing)
    assert list(nothing.columns) == ['class', 'probability', 'probabilities']
    assert len(nothing) == 0
for answer in answers:
    assert answer['class'].to_list() == answers[0]['class'].to_list()
    assert answer['probability'].to_list() == [max(p) for p in answer['probabilities']]
for number, answer in enumerate(answers):
    found[f'mlflow-{number}'] = torch.tensor(np.stack(answer['probabilities']))
print('\\n'.join(answers[0]['class']))
assert 'open_clip' not in sys.modules

# Where torch and torchvision are not of one build, the latter cannot be imported as it is.
import types
if not hasattr(torch.ops.torchvision, 'nms'):
    name = 'torchvision._meta_registrations'
    sys.modules[name] = types.ModuleType(name)
import open_clip
from torch.nn.functional import linear, normalize
model = open_clip.create_model(f'local-dir:{folder}/merged').eval()
head = load_file(f'{folder}/merged/classifier.safetensors')
with torch.no_grad():
    z = normalize(model.encode_image(images), dim=-1)
found['merged'] = linear(z, head['weight'], head.get('bias'))

assert not {m.split('.')[0] for m in sys.modules} & {'search', 'spaces', 'trainables'}
save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, out)
"""


@dataclass(frozen=True)
class Found:
    """What the exports answer in a process that has nothing of ours."""

    answers: dict[str, Tensor]
    classes: list[str]
    """Of the first images, named by the MLflow model."""


@pytest.fixture(scope="module")
def elsewhere(exports: Path, given: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One process loads all: each import takes seconds."""
    out = tmp_path_factory.mktemp("elsewhere") / "found.safetensors"
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(exports), str(given), str(out)]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Found(load_file(out), done.stdout.splitlines()[-3:])


# --- what is written -----------------------------------------------------------------------------


def test_masks_with_a_card(export: Export, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    said = export("rmt", "--trial", "0", "--format", "mask", "--output", str(out))
    assert said.code == 0, said.err
    assert "rmt, digits, 4 shots, seed 1" in said.out
    assert sorted(p.name for p in out.iterdir()) == ["artifact.safetensors", "card.json"]
    card = json.loads((out / "card.json").read_text())
    assert (card["method"], card["shots"], card["seed"], card["trial"]) == ("rmt", 4, 1, 0)
    assert len(card["classes"]) == len(card["prompts"]) == 10
    assert card["backbone"]["fingerprint"] == load_backbone("tiny").fingerprint
    assert card["validation"]["images"] == card["verified"]["images"] == 40
    assert card["verified"]["largest"] <= card["verified"]["tolerance"] == 1e-3
    with safe_open(out / "artifact.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "binary-mask"
    inside = json.loads(metadata["card"])
    assert inside == {key: value for key, value in card.items() if key != "verified"}


def test_a_merged_model_is_a_plain_clip(elsewhere: Found, exports: Path, sweeps: Sweeps) -> None:
    expected = sweeps.model("rmt", "0").logits
    torch.testing.assert_close(elsewhere.answers["merged"], expected, atol=1e-3, rtol=0)
    plain, merged = load_backbone("tiny"), load_backbone(f"local-dir:{exports / 'merged'}")
    shapes = [
        {key: tensor.shape for key, tensor in b.model.state_dict().items()} for b in (plain, merged)
    ]
    assert shapes[0] == shapes[1]  # no tensor more: no cost more
    changed = [
        key
        for key, tensor in merged.model.state_dict().items()
        if not torch.equal(tensor, plain.model.state_dict()[key])
    ]
    assert changed
    assert all("attn" in key and key.startswith("visual.") for key in changed)
    assert torch.equal(merged.encode_text(["a seven"]), plain.encode_text(["a seven"]))


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_graph_needs_its_runtime_alone(kind: str, elsewhere: Found, sweeps: Sweeps) -> None:
    expected = sweeps.model(NETWORKS[kind], "0").logits
    torch.testing.assert_close(elsewhere.answers[kind], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(elsewhere.answers[f"{kind}-one"], expected[:1], atol=1e-3, rtol=0)


def test_an_mlflow_model_reads_images_and_names_classes(
    elsewhere: Found, exports: Path, sweeps: Sweeps
) -> None:
    out = exports / "mlflow"
    expected = sweeps.model("rmt", "0").logits[:3].double().softmax(dim=1)
    for number in range(8):
        answer = elsewhere.answers[f"mlflow-{number}"]
        torch.testing.assert_close(answer, expected, atol=5e-2, rtol=0)
    card = json.loads((out / "card.json").read_text())
    assert elsewhere.classes == [card["classes"][row] for row in expected.argmax(1).tolist()]
    described = (out / "MLmodel").read_text()
    assert "signature:" in described
    assert (out / "input_example.json").exists()
    assert {"torch", "numpy", "pandas", "pillow"} <= {
        line.partition("==")[0] for line in (out / "requirements.txt").read_text().splitlines()
    }
    assert not list(out.rglob("*.pkl"))


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_export_classifies_files_like_its_trial(
    kind: str, exports: Path, given: Path, sweeps: Sweeps
) -> None:
    classifier = open_classifier(str(exports / kind), "sweeps")
    labels, probabilities = classifier.predict(sorted(given.glob("*.png")))
    wanted = sweeps.model(NETWORKS[kind], "0").logits.softmax(-1)
    np.testing.assert_allclose(probabilities, wanted.numpy(), atol=1e-4)
    assert labels == [classifier.classes[place] for place in wanted.argmax(1).tolist()]


def test_a_damaged_export_is_not_opened(
    exports: Path, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exports / "torch", tmp_path / "copy")
    (folder / "model.pt2").write_bytes(b"")
    assert predict.main([str(folder), str(given / "00.png")]) == 2
    assert "An export must be complete" in capsys.readouterr().err


# MLflow's own, about itself, when it is imported.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_pixels_that_are_no_bytes_are_refused_by_the_travelling_code() -> None:
    from search.exporting.served import _opened

    pixels = np.arange(2 * 2 * 3).reshape(2, 2, 3)
    kinds = (np.uint8, np.int16, np.float32)
    for fits in (*(pixels.astype(kind) for kind in kinds), pixels.tolist()):
        assert np.array_equal(np.asarray(_opened(fits)), pixels)
    for wrong, found in (
        (pixels / 255, "float64 from 0.0 to 0.04"),
        (1.0 * (pixels > 5), "float64 from 0.0 to 1.0"),
        (pixels * np.nan, "float64 from nan"),
        ((pixels + 300).astype(np.int16), "int16 from 300 to 311"),
        (pixels - 1, "int64 from -1 to 10"),
        ((pixels > 5).tolist(), "bool"),
    ):
        with pytest.raises(ValueError, match=rf"whole numbers from 0 to 255, got {found}.*uint8"):
            _opened(wrong)
    for shape in ((2, 2), (3, 2, 2), (0, 2, 3)):
        with pytest.raises(ValueError, match=r"\[height, width, 3\]"):
            _opened(np.zeros(shape, np.uint8))


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_travelling_code_resizes_as_we_do(
    mode: ResizeMode, interpolation: Interpolation
) -> None:
    from search.exporting.served import square

    rng = torch.Generator().manual_seed(0)
    ours = Preprocess(24, (0.5,) * 3, (0.5,) * 3, interpolation, mode)
    for height, width in ((24, 24), (40, 31), (31, 40), (10, 57), (24, 33), (101, 24)):
        image = torch.randint(256, (3, height, width), generator=rng).to(torch.uint8)
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        theirs = square(pillow, 24, mode, Image.Resampling[interpolation.upper()])
        difference = ours.resize([image])[0].permute(1, 2, 0).int() - torch.tensor(theirs).int()
        assert difference.abs().max() <= 1
        assert (difference != 0).double().mean() < 0.03  # in another order of the axes: 0.2


def test_one_of_several_draws_is_exported(export: Export, tmp_path: Path) -> None:
    made(tmp_path, "draws", TASKRES, TaskSpec(("digits",), "tiny", (4,), (1, 2)))
    out = tmp_path / "out"
    options = ("--trial", "0", "--episode", "seed2", "--output", str(out))
    said = export("draws", *options, storage=tmp_path)
    assert said.code == 0, said.err
    learned = load_file(tmp_path / "draws/trials/000000/artifact-seed2.safetensors")
    written = load_file(out / "artifact.safetensors")
    assert learned.keys() == written.keys()
    assert all(torch.equal(learned[name], tensor) for name, tensor in written.items())


def test_features_without_a_tower_in_the_default_folder(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exports go to a separate folder, which git ignores."""
    spec = f"bundle:{write_bundle(tmp_path / 'small.safetensors', tensors())}"
    config = replace(TASKRES, method_config=TaskResConfig())
    made(tmp_path, "bundle", config, TaskSpec((spec,), spec, (2,), (1,)))
    for kind in ("merged", "torch", "onnx", "mlflow"):
        said = export("bundle", "--trial", "0", "--format", kind, storage=tmp_path)
        assert said.code == 2
        assert "holds features and has no image tower" in said.err
        assert "Formats that do: artifact." in said.err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    said = export("bundle", "--trial", "0", storage=tmp_path)
    assert said.code == 0, said.err
    folder = Path("exports/bundle-trial0-artifact")
    assert str(folder.absolute()) in said.out
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.safetensors", "card.json"]
    assert [path.name for path in Path().iterdir()] == ["exports"]
    assert "/exports/" in Path(__file__).parents[2].joinpath(".gitignore").read_text().splitlines()
    assert set(load_file(folder / "artifact.safetensors")) == {"residual", "alpha"}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("none",), "There is no sweep 'none'"),
        (("rmt", "--trial", "7"), "There is no finished trial 7 in 'rmt'. Complete trials: 0."),
        (("rmt", "--trial", "first"), "--trial must be best or a trial's number, got 'first'"),
        (
            ("rmt", "--trial", "0", "--episode", "seed9"),
            "There is no episode 'seed9'. Known: seed1.",
        ),
        (("rmt", "--format", "onx"), "Did you mean 'onnx'?"),
        (
            ("taskres", "--trial", "0", "--format", "mask"),
            "Formats that do: artifact, merged, torch, onnx, mlflow.",
        ),
        (("rmt", "--frmat", "onnx"), "--frmat"),
        (("taskres",), "has not been evaluated. Resume it: "),
        (("taskres",), "Or export the best trial so far: --trial 0."),
    ],
)
def test_mistakes(
    export: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = export(*options)
    assert said.code == 2
    assert expected in said.err
    assert len(said.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_touched(export: Export, tmp_path: Path) -> None:
    said = export("rmt", "--output", str(tmp_path))
    assert said.code == 2
    assert "must not exist yet" in said.err


def test_a_sweep_that_is_not_done(export: Export, sweeps: Sweeps, tmp_path: Path) -> None:
    folder = sweeps.copy("rmt", tmp_path)
    result = folder / "trials/000000/result.json"
    plain = json.loads(result.read_text())
    result.write_text(json.dumps(plain | {"state": "PRUNED"}))
    said = export("rmt", storage=tmp_path)
    assert said.code == 2
    assert "'rmt' has none" in said.err
    shutil.copytree(folder / "trials/000000", folder / "trials/000001")
    second = folder / "trials/000001/result.json"
    second.write_text(json.dumps(plain | {"number": 1}))
    said = export("rmt", "--trial", "0", storage=tmp_path)
    assert "0 is PRUNED. Complete trials: 1." in said.err


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)


def reverse(path: Path) -> None:
    """The right tensors, in the wrong rows."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    found = load_file(path)
    save_file(found | {"residual": 50 * found["residual"].flip(0)}, path, metadata)


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("rmt", lambda path: flip(path, -3), "the mask file is damaged"),
        ("rmt", lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a safetensors file"),
        ("rmt", lambda path: path.unlink(), "it does not exist"),
        ("taskres", reverse, "validation accuracy"),
    ],
)
def test_a_damaged_artifact(
    export: Export,
    sweeps: Sweeps,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], Any],
    expected: str,
) -> None:
    folder = sweeps.copy(name, tmp_path)
    damage(folder / "trials/000000/artifact.safetensors")
    out = tmp_path / "out"
    said = export(name, "--trial", "0", "--output", str(out), storage=tmp_path)
    assert said.code == 2
    assert "'trials/000000/artifact.safetensors' is not" in said.err
    assert expected in said.err
    assert not out.exists()


def test_other_data_than_the_sweep_s(export: Export, sweeps: Sweeps, tmp_path: Path) -> None:
    folder = sweeps.copy("taskres", tmp_path)
    record = json.loads((folder / "sweep.json").read_text())
    record["fingerprints"]["val"] = "0" * 64
    (folder / "sweep.json").write_text(json.dumps(record))
    said = export("taskres", "--trial", "0", storage=tmp_path)
    assert said.code == 2
    assert "val: the sweep has" in said.err


# --- verification --------------------------------------------------------------------------------


def test_a_wrong_export_is_not_kept(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that forgets what was learned is found out, and nothing is left of it."""
    right = FORMATS["merged"]

    def forgetful(model: Model, card: dict[str, Any], folder: Path, beside: Path) -> None:
        right.write(model, card, folder, beside)
        path = folder / "classifier.safetensors"
        save_file({"weight": load_file(path)["weight"].flip(0)}, path)

    monkeypatch.setitem(FORMATS, "merged", Format("wrong", forgetful, right.refusal))
    options = ("--trial", "0", "--format", "merged", "--output", str(tmp_path / "out"))
    said = export("taskres", *options)
    assert said.code == 1
    assert "its logits differ by" in said.err
    assert not list(tmp_path.iterdir())


def test_comparison() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert compare(logits + 5e-4, logits).largest == pytest.approx(5e-4, rel=1e-2)
    tie = logits.clone()
    tie[1, 2] += 5e-4  # two classes that are as good as equal: either may be named
    compare(tie, logits)
    wrong: list[tuple[Tensor, str]] = [
        (logits + 2e-3, "differ by 0.002"),
        (logits.clone().fill_(float("nan")), "differ by nan"),
        (logits[:1], "gives"),
    ]
    for found, reason in wrong:
        with pytest.raises(VerificationError, match=reason):
            compare(found, logits)
