"""Temporary folders: private, removed, and found after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from trainables.core.temporary import remove_abandoned_folders, temporary_folder


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
from trainables.core.temporary import temporary_folder

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
