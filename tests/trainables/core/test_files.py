"""Files that users name: whatever is there, the answer is the content or one reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from trainables.core.files import (
    expanded,
    kind_of,
    make_folder,
    read_text,
    remove_abandoned_folders,
    temporary_folder,
)


def test_entries_of_new_folders_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut does not lose a new folder with the files in it."""
    flushed: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append(os.readlink(f"/dev/fd/{handle}"))
    )
    make_folder(tmp_path / "sweep" / "trials" / "00000")
    assert (tmp_path / "sweep" / "trials" / "00000").is_dir()
    assert flushed == [str(tmp_path), str(tmp_path / "sweep"), str(tmp_path / "sweep" / "trials")]
    make_folder(tmp_path / "sweep" / "trials")
    assert len(flushed) == 3


def test_an_unknown_user_has_no_home() -> None:
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert expanded("~/x") == Path(os.path.expanduser("~")) / "x"


def test_text_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffé".encode())
    assert read_text(tmp_path / "a") == "é"


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "bytes").write_bytes(b"\xff")
    for path, reason in {
        str(tmp_path / "pipe"): "it is a named pipe",
        str(tmp_path): "it is a folder",
        "/dev/zero": "it is a device",
        str(tmp_path / "loop"): "it is a symbolic link that leads to itself",
        str(tmp_path / "link"): "it is a link to a missing file",
        str(tmp_path / "none"): "it is missing",
        str(tmp_path / "bytes"): "it is not UTF-8 text",
        "a\0b": "it is not a valid path",
        "\ud800": "it is not a valid path",
    }.items():
        with pytest.raises(OSError, match=reason):
            read_text(path)
    assert kind_of(tmp_path / "bytes") == "a file"


def test_a_folder_is_private_and_removed(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
        remove_abandoned_folders(tmp_path)
        assert folder.is_dir()  # it is in use
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from trainables.core.files import temporary_folder

with temporary_folder(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    remove_abandoned_folders(tmp_path)
    assert folder.is_dir()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    remove_abandoned_folders(tmp_path)
    assert not folder.exists()


def test_only_own_abandoned_folders_are_removed(tmp_path: Path) -> None:
    def folder(name: str, lock: bool = True) -> Path:
        path = tmp_path / name
        path.mkdir()
        if lock:
            (path / "few-shot-search.lock").touch()
        return path

    abandoned = folder("few-shot-abandoned")
    kept = [folder("few-shot-data", lock=False), folder("other"), folder("few-shot-in-use")]
    target = folder("target")
    (tmp_path / "few-shot-link").symlink_to(target)
    if os.geteuid() == 0:
        kept.append(folder("few-shot-of-another-user"))
        os.chown(kept[-1], 65534, 65534)
    with FileLock(kept[2] / "few-shot-search.lock"):
        remove_abandoned_folders(tmp_path)
    assert not abandoned.exists()
    assert all(path.is_dir() for path in [*kept, target])
