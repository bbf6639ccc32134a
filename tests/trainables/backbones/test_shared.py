"""Weights reach every node once, and only as they are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.backbones.registry import BACKBONES, absolute_spec
from trainables.backbones.shared_weights import fetch_weights, share_weights
from trainables.core.storage import LocalStorage, StorageError
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.load_backbone import load_backbone


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "few-shot-clip-search" / "weights"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder on the driver's machine."""
    folder = tmp_path / "driver" / "my-model"
    shutil.copytree(BACKBONES["tiny"], folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def test_a_worker_without_the_folder_gets_the_same_model(
    model: Path, tmp_path: Path, cache: Path
) -> None:
    spec = absolute_spec(str(model))
    expected = load_backbone(spec).fingerprint
    location = share_weights(spec, LocalStorage(tmp_path / "sweep"))
    shutil.rmtree(model)  # this is another machine now
    encoded_task = EncodedTask(spec, "cpu", DataSource(), location)
    assert encoded_task.backbone.fingerprint == expected
    assert encoded_task.spec == spec  # the trial's identity is not where its node keeps the files
    (copy,) = (path for path in cache.iterdir() if path.is_dir())
    shutil.rmtree(tmp_path / "sweep")  # fetched once
    assert fetch_weights(spec, location) == str(copy / "my-model")


@pytest.mark.parametrize("before", ["ViT-B-32:", "ViT-B-32:openai@", "ViT-L-14-gelu:", "openai:"])
def test_a_file_behind_an_architecture(before: str, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"weights")
    location = share_weights(f"{before}{path}", LocalStorage(tmp_path / "sweep"))
    found = fetch_weights(f"{before}{path}", location)
    assert found.startswith(f"{before}{cache}")
    assert Path(found.removeprefix(before)).read_bytes() == b"weights"


@pytest.mark.parametrize("spec", ["tiny", "ViT-B-16", "ViT-B-32:laion2b_s34b_b79k", "hf-hub:a/b"])
def test_what_every_node_has_or_downloads_is_not_shared(spec: str, tmp_path: Path) -> None:
    sweep = LocalStorage(tmp_path / "sweep")
    assert share_weights(spec, sweep) == ""
    assert fetch_weights(spec, "") == spec
    assert sweep.files() == []


def test_another_file_under_the_same_path_is_another_copy(tmp_path: Path) -> None:
    path, sweep = tmp_path / "w.pt", LocalStorage(tmp_path / "sweep")
    path.write_bytes(b"one")
    first = share_weights(f"RN50:{path}", sweep)
    assert share_weights(f"RN50:{path}", sweep) == first
    path.write_bytes(b"two")
    second = share_weights(f"RN50:{path}", sweep)
    assert first != second
    for location, content in ((first, b"one"), (second, b"two")):
        assert Path(fetch_weights(f"RN50:{path}", location)[5:]).read_bytes() == content


def test_a_damaged_copy_is_never_used(tmp_path: Path, cache: Path) -> None:
    path, sweep = tmp_path / "w.pt", LocalStorage(tmp_path / "sweep")
    path.write_bytes(b"one")
    location = share_weights(f"RN50:{path}", sweep)
    (Path(location) / "w.pt").write_bytes(b"two")
    with pytest.raises(StorageError, match="damaged"):
        fetch_weights(f"RN50:{path}", location)
    assert [p.name for p in cache.iterdir() if p.is_dir()] == []


def test_the_processes_of_a_node_fetch_it_once(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(bytes(1 << 24))
    spec = f"RN50:{path}"
    location = share_weights(spec, LocalStorage(tmp_path / "sweep"))
    code = (
        "import sys; from trainables.backbones.shared_weights import fetch_weights;"
        "print(fetch_weights(*sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, spec, location]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {process.communicate()[0].strip() for process in processes}
    (only,) = found
    assert Path(only[5:]).stat().st_size == 1 << 24
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1
