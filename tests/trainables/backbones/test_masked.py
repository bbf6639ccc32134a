"""`FILE.safetensors@BACKBONE`: a backbone with learned masks, from files in any place."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainables.trials import TASK, mask_trial, residual_trial
from trainables.backbones.base import BackboneError
from trainables.backbones.layout import split_masks
from trainables.backbones.registry import BACKBONES, absolute_spec
from trainables.backbones.shared_weights import fetch_weights, share_weights
from trainables.core.storage import LocalStorage
from trainables.core.tensor_file import write_tensors
from trainables.encoded_task import EncodedTask
from trainables.load_backbone import load_backbone
from trainables.methods.base import MethodError, TaskFacts
from trainables.methods.masking.masks import pack_bits, unpack_masks
from trainables.methods.registry import METHODS
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig

CELL = Episode("digits", 2, 1)


def trained(config: TrialConfig, encoded_task: EncodedTask) -> Trainer:
    trainer = Trainer(config, encoded_task, CELL)
    trainer.run_epoch()
    return trainer


@pytest.fixture(scope="module")
def encoded_task() -> EncodedTask:
    return EncodedTask("tiny", "cpu", TASK.source(""))


@pytest.fixture(scope="module")
def masks(encoded_task: EncodedTask) -> Trainer:
    return trained(mask_trial(1), encoded_task)


@pytest.fixture
def artifact(masks: Trainer, tmp_path: Path) -> Path:
    """The file that a trial of mask tuning leaves."""
    write_tensors(LocalStorage(tmp_path), "masks.safetensors", *masks.artifact())
    return tmp_path / "masks.safetensors"


def test_it_is_what_the_method_would_give_the_next_stage(
    artifact: Path, masks: Trainer, encoded_task: EncodedTask
) -> None:
    found, expected = load_backbone(f"{artifact}@tiny"), masks.method.merged_backbone()
    assert found.fingerprint == expected.fingerprint != encoded_task.backbone.fingerprint
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.encode_image(images), expected.encode_image(images))
    assert found.name == f"{artifact}@tiny"
    assert not any(p.requires_grad for p in found.model.parameters())


@pytest.mark.parametrize("name", ["rmt-text", "rmt-both"])
def test_masks_of_the_text_tower(name: str, encoded_task: EncodedTask, tmp_path: Path) -> None:
    """Both towers of a CLIP have layers of the same names: the file says whose they are."""
    recipe = METHODS[name].preset("paper", TaskFacts("digits", 2, 20))
    config = replace(recipe.config, prompts="single")
    text = trained(TrialConfig(name, "search", config, mask_trial().optim), encoded_task)
    write_tensors(LocalStorage(tmp_path), "text.safetensors", *text.artifact())
    found, expected = (
        load_backbone(f"{tmp_path}/text.safetensors@tiny"),
        text.method.merged_backbone(),
    )
    assert found.fingerprint == expected.fingerprint
    assert not torch.equal(found.encode_text(["x"]), encoded_task.backbone.encode_text(["x"]))
    assert torch.equal(found.encode_text(["x"]), expected.encode_text(["x"]))


def test_one_towers_masks_are_not_the_others(masks: Trainer, encoded_task: EncodedTask) -> None:
    recipe = METHODS["rmt-text"].preset("paper", TaskFacts("digits", 2, 20))
    text = Trainer(
        TrialConfig("rmt-text", "search", recipe.config, recipe.optim), encoded_task, CELL
    )
    with pytest.raises(MethodError, match=r"prefix '', got 'visual\.'"):
        text.load_artifact(*masks.artifact())
    with pytest.raises(MethodError, match=r"prefix 'visual\.', got ''"):
        Trainer(mask_trial(1), encoded_task, CELL).load_artifact(*text.artifact())


def test_masks_on_masks(artifact: Path, tmp_path: Path) -> None:
    """Each artifact applies to the backbone after its '@'."""
    spec = f"{artifact}@tiny"
    second = trained(mask_trial(1, masked="mlp"), EncodedTask(spec, "cpu", TASK.source("")))
    write_tensors(LocalStorage(tmp_path), "more.safetensors", *second.artifact())
    found = load_backbone(f"{tmp_path}/more.safetensors@{spec}")
    assert found.fingerprint == second.method.merged_backbone().fingerprint
    with pytest.raises(BackboneError, match="load the backbone that they were trained on"):
        load_backbone(f"{tmp_path}/more.safetensors@tiny")


def test_masks_of_the_released_code(
    masks: Trainer, encoded_task: EncodedTask, tmp_path: Path
) -> None:
    """The same bits as in an artifact make the same backbone, whatever stands before names."""
    bits = unpack_masks(*masks.artifact(), encoded_task.backbone.fingerprint)
    state = {
        f"module.{name.rpartition('.')[0]}.mask_real": bytes(pack_bits(mask).tolist())
        for name, mask in bits.items()
    }
    for name in ("model.pth.tar-30", "masks.pt"):
        torch.save({"state_dict": state, "epoch": 30}, tmp_path / name)
        found = load_backbone(f"{tmp_path}/{name}@tiny")
        assert found.fingerprint == masks.method.merged_backbone().fingerprint
    first = next(iter(state))
    torch.save({k: v for k, v in state.items() if k != first}, tmp_path / "masks.pt")
    message = refused(f"{tmp_path}/masks.pt@tiny")
    assert f"there is none of {next(iter(bits))}: load the backbone" in message
    assert "does not exist" in refused(f"{tmp_path}/none.pth.tar@tiny")


def test_a_method_is_trained_on_it(
    artifact: Path, masks: Trainer, encoded_task: EncodedTask
) -> None:
    """As behind a stage."""
    on_file = trained(residual_trial(1), EncodedTask(f"{artifact}@tiny", "cpu", TASK.source("")))
    behind = trained(residual_trial(1), encoded_task.with_backbone(masks.method.merged_backbone()))
    for name, tensor in on_file.artifact()[0].items():
        assert torch.equal(tensor, behind.artifact()[0][name])


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("a.safetensors@tiny", ("a.safetensors", "tiny")),
        ("/x/a.safetensors@RN50:/y/b.safetensors", ("/x/a.safetensors", "RN50:/y/b.safetensors")),
        ("a.safetensors@b.safetensors@tiny", ("a.safetensors", "b.safetensors@tiny")),
        ("/x/model.pth.tar-30@RN50:/y/b.pt", ("/x/model.pth.tar-30", "RN50:/y/b.pt")),
        ("a.pth@tiny", ("a.pth", "tiny")),
        ("RN50:/x@y/w.safetensors", None),
        ("tiny", None),
    ],
)
def test_specifications(spec: str, parts: tuple[str, str] | None) -> None:
    assert split_masks(spec) == parts


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BACKBONES["tiny"], "model", ignore=shutil.ignore_patterns("*.py"))
    assert absolute_spec("m.safetensors@tiny") == f"{tmp_path}/m.safetensors@tiny"
    expected = f"{tmp_path}/m.safetensors@{tmp_path}/model"
    assert absolute_spec("m.safetensors@model") == absolute_spec(expected) == expected


@pytest.mark.parametrize("own", [False, True])
def test_it_travels_to_other_machines(
    own: bool, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact alone, or with a model's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    backbone = "tiny"
    if own:
        backbone = str(tmp_path / "model")
        shutil.copytree(BACKBONES["tiny"], backbone, ignore=shutil.ignore_patterns("*.py"))
    spec = f"{artifact}@{backbone}"
    expected = load_backbone(f"{artifact}@tiny").fingerprint
    location = share_weights(spec, LocalStorage(tmp_path / "sweep"))
    artifact.unlink()
    if own:
        shutil.rmtree(backbone)
    for _ in range(2):
        moved = fetch_weights(spec, location)
        assert load_backbone(moved).fingerprint == expected
    assert str(tmp_path / "cache") in moved
    assert moved.endswith("/model" if own else "@tiny")


def refused(spec: str) -> str:
    with pytest.raises(BackboneError) as error:
        load_backbone(spec)
    return str(error.value)


def test_another_backbone(artifact: Path, tmp_path: Path) -> None:
    """A backbone of the same architecture with one other weight."""
    folder = tmp_path / "model"
    shutil.copytree(BACKBONES["tiny"], folder, ignore=shutil.ignore_patterns("*.py"))
    file = folder / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["visual.proj"] = tensors["visual.proj"] * 1.01
    save_file(tensors, file)
    message = refused(f"{artifact}@{folder}")
    assert "load the backbone that they were trained on" in message
    assert str(artifact) in message


def test_a_residual(encoded_task: EncodedTask, tmp_path: Path) -> None:
    residual = trained(residual_trial(1), encoded_task)
    write_tensors(LocalStorage(tmp_path), "r.safetensors", *residual.artifact())
    message = refused(f"{tmp_path}/r.safetensors@tiny")
    for words in ("must be a mask artifact", "'taskres'", "--init-from"):
        assert words in message


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist: check the path" in refused(f"{tmp_path}/none.safetensors@tiny")


@pytest.mark.parametrize("size", [0, 50, -1])
def test_a_file_that_was_cut_off(size: int, artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:size])
    assert "is damaged: copy it again" in refused(f"{artifact}@tiny")


def test_a_flipped_bit(artifact: Path) -> None:
    content = artifact.read_bytes()
    artifact.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = refused(f"{artifact}@tiny")
    assert "copy it again" in message
    assert str(artifact) in message


def test_no_metadata(artifact: Path) -> None:
    save_file(load_file(artifact), artifact)
    assert "must be a mask artifact" in refused(f"{artifact}@tiny")


def test_an_unknown_backbone_is_told_as_ever(artifact: Path) -> None:
    assert "tinny" in refused(f"{artifact}@tinny")
