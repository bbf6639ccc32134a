"""Weight files: their code is never run, none unpacks to more than it declares, wrappers are
removed."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainables.backbones.archive import read_torchscript
from trainables.backbones.base import BackboneError
from trainables.backbones.layout import CONFIG_FILE
from trainables.backbones.registry import BACKBONES, open_backbone
from trainables.backbones.weights import read_weights
from trainables.load_backbone import load_backbone

TINY = BACKBONES["tiny"]


class Inner(nn.Module):
    """A module with everything that a state dict names, and much that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.linear.weight
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.BatchNorm1d(4))
        self.register_buffer("ids", torch.arange(3))
        self.mask = torch.ones(3)  # no parameter and no buffer
        self.sizes = [1, 2]
        self.flag = True

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blocks(self.linear(x + self.mask) + self.tied(x))
        return found


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_archive_has_the_state_dict_that_torch_sees(
    way: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    module, path = Inner().eval(), tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = (
            torch.jit.script(module)
            if way == "script"
            else torch.jit.trace(module, torch.ones(2, 3))
        ).to(dtype)
        torch.jit.save(scripted, path)
        expected = torch.jit.load(path).state_dict()
    found = read_torchscript(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


# Code in files


class Restorer(nn.Module):
    """Scripted, it writes a file when `torch.jit.load` reads it."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, str, bool]:
        return self.weight, self.target, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.weight = state[0]
        self.target = state[1]
        self.training = state[2]
        torch.save(state[0], state[1])


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None], method: int = 0) -> None:
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)


def trees(members: dict[str, bytes]) -> list[str]:
    return [name for name in members if name.endswith("/data.pkl")]


class Touch:
    """Pickled, it makes a file when it is unpickled freely."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def scripted(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)


def script_that_writes(path: Path, target: Path) -> None:
    scripted(Restorer(str(target)), path)


def archive_that_writes(path: Path, target: Path) -> None:
    """An archive whose object tree is a pickle of Python's."""
    scripted(Inner(), path)
    tree = pickle.dumps({"weight": Touch(target)}, protocol=2)
    rewritten(path, lambda members: members.update(dict.fromkeys(trees(members), tree)))


def checkpoint_that_writes(path: Path, target: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2)}, "hook": Touch(target)}, path)


def legacy_that_writes(path: Path, target: Path) -> None:
    torch.save({"weight": Touch(target)}, path, _use_new_zipfile_serialization=False)


def pickle_that_writes(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Touch(target)}))


def arrays_that_write(path: Path, target: Path) -> None:
    content = io.BytesIO()
    np.savez(content, a=np.array([Touch(target)], dtype=object))
    path.write_bytes(content.getvalue())


CRAFTED: dict[str, Callable[[Path, Path], None]] = {
    "script": script_that_writes,
    "archive": archive_that_writes,
    "checkpoint": checkpoint_that_writes,
    "legacy": legacy_that_writes,
    "pickle": pickle_that_writes,
    "arrays": arrays_that_write,
}


def test_torch_s_warnings_about_a_file_are_not_shown(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "w.pt", pickle_protocol=4)
    with (
        warnings.catch_warnings(record=True, action="always") as shown,
        pytest.raises(BackboneError, match="save its state dict alone"),
    ):
        read_weights(tmp_path / "w.pt")
    assert not shown


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".npz", ".safetensors"])
@pytest.mark.parametrize("kind", sorted(CRAFTED))
def test_no_file_runs_code_whatever_names_it(kind: str, suffix: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"w{suffix}", tmp_path / "made-by-the-file"
    CRAFTED[kind](path, target)
    for spec in (f"openai:{path}", f"ViT-S-32:{path}", f"ViT-B-32:openai@{path}"):
        with pytest.raises(BackboneError) as found:
            load_backbone(spec)
        assert not target.exists()
        assert "weights_only" not in str(found.value)  # PyTorch's advice to run the code


@pytest.mark.parametrize("kind", sorted(CRAFTED))
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_no_folder_runs_code(kind: str, name: str, tmp_path: Path) -> None:
    target = tmp_path / "made-by-the-file"
    (tmp_path / CONFIG_FILE).write_bytes((TINY / CONFIG_FILE).read_bytes())
    CRAFTED[kind](tmp_path / name, target)
    with pytest.raises(BackboneError):
        load_backbone(str(tmp_path))
    assert not target.exists()


@pytest.mark.parametrize("kind", sorted(CRAFTED))
@pytest.mark.parametrize("suffix", [".pth.tar", ".pth.tar-10", ".pth", ".pt", ".safetensors"])
def test_no_masks_run_code(kind: str, suffix: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"masks{suffix}", tmp_path / "made-by-the-file"
    CRAFTED[kind](path, target)
    with pytest.raises(BackboneError):
        load_backbone(f"{path}@tiny")
    assert not target.exists()


def test_torch_itself_would_run_the_script(tmp_path: Path) -> None:
    """Without this the tests above could not fail."""
    script_that_writes(tmp_path / "w.pt", tmp_path / "made")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(tmp_path / "w.pt")
    assert (tmp_path / "made").exists()


# Files that claim more than they are


@pytest.mark.parametrize("script", [True, False])
def test_a_file_that_unpacks_to_more_than_it_is(script: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    scripted(Inner(), path) if script else torch.save(Inner().state_dict(), path)

    def swell(members: dict[str, bytes]) -> None:
        members[next(name for name in members if "/data/" in name)] = bytes(50_000_000)

    rewritten(path, swell, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(BackboneError, match="would unpack from"):
        read_weights(path)


def test_arrays_that_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(50_000_000, dtype=np.uint8))
    with pytest.raises(BackboneError, match="would unpack from"):
        read_weights(tmp_path / "w.npz")


def test_a_tensor_that_is_larger_than_its_storage(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1).expand(10**12)}, tmp_path / "w.pt")
    with pytest.raises(BackboneError, match="stored in full"):
        read_weights(tmp_path / "w.pt")


def test_members_outside_the_archive_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "w.pt"
    path.parent.mkdir()
    torch.save({"weight": torch.ones(2)}, path)
    rewritten(path, lambda members: members.update({"../../escaped": b"x"}))
    before = sorted(tmp_path.rglob("*"))
    with contextlib.suppress(BackboneError):
        assert read_weights(path).tensors["weight"].tolist() == [1, 1]
    assert sorted(tmp_path.rglob("*")) == before


def test_modules_that_contain_each_other(tmp_path: Path) -> None:
    """Forty levels that each hold the next one twice would be 10^12 modules."""
    path = tmp_path / "w.pt"
    scripted(Inner(), path)
    tree = b"\x80\x02N"
    for level in range(40):
        inner = b"q" + bytes([level]) + b"0"  # memorise it and take it off the stack
        child = b"h" + bytes([level])
        tree += inner + b"c__torch__\nInner\n)\x81}(X\x01\x00\x00\x00a" + child
        tree += b"X\x01\x00\x00\x00b" + child + b"ub"
    rewritten(path, lambda members: members.update(dict.fromkeys(trees(members), tree + b".")))
    with pytest.raises(BackboneError, match="too many parts"):
        read_weights(path)


# Wrappers


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return dict(open_backbone("tiny").model.state_dict())


def wrapped(wrapper: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    match wrapper:
        case "state_dict" | "model" | "model_state_dict":
            return {wrapper: tensors, "epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}}
        case "lightning":
            state = {f"model.{name}": tensor for name, tensor in tensors.items()}
            return {
                "state_dict": state,
                "epoch": 1,
                "global_step": 20,
                "pytorch-lightning_version": "2.5.0",
                "hyper_parameters": {"lr": 1e-3},
                "optimizer_states": [{"state": {}, "param_groups": []}],
                "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
            }
        case "inside":
            return {name.replace("visual.", "visual._orig_mod."): t for name, t in tensors.items()}
        case prefix:
            return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrapper",
    [
        *("state_dict", "model", "model_state_dict", "lightning", "inside", "module."),
        *("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "clip.", "net.encoder.module."),
    ],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_training_checkpoints_are_unwrapped(
    wrapper: str, suffix: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(wrapped(wrapper, tensors), path)
    found = read_weights(path).tensors
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_prefix_that_only_some_names_have_stays(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    other = {f"model.{name}": tensor for name, tensor in tensors.items()} | {"w": torch.ones(1)}
    save_file({name: t.clone() for name, t in other.items()}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").tensors.keys() == other.keys()
