"""Files that users name: whatever is there, the answer is the content or one reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainables.core.files import expanded, kind_of, read_text


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
