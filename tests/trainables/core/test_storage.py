"""Properties shared by every kind of storage."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers import S3, s3_server
from trainables.core.credentials import SECRETS
from trainables.core.storage import (
    LocalStorage,
    Storage,
    StorageError,
    join,
    local_folder,
    open_storage,
    split,
)

Make = Callable[[str], Storage]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["folder", "file-uri", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that does not exist yet, of every kind."""
    if request.param == "folder":
        return str(tmp_path / "here")
    if request.param == "file-uri":
        return f"file://{tmp_path}/here"
    server: S3 = request.getfixturevalue("s3")
    return server.location(f"sweeps/{tmp_path.name}")


@pytest.fixture
def storage(location: str) -> Storage:
    return open_storage(location)


def test_a_place_that_does_not_exist_is_empty(storage: Storage) -> None:
    assert storage.files() == []
    assert storage.folders() == []
    assert storage.read_log("log") == b""
    assert not storage.exists("a")
    storage.delete("a")
    with pytest.raises(FileNotFoundError):
        storage.read("a")
    with pytest.raises(FileNotFoundError), storage.as_local_file("a"):
        pass


def test_what_is_written_is_there_for_everybody(storage: Storage, location: str) -> None:
    storage.write("trials/7/result.json", b"one")
    storage.write("trials/7/result.json", b"two")
    storage.write("trials/12/result.json", b"")
    storage.write("top", bytes(3 << 20))
    other = open_storage(location)
    assert other.read("trials/7/result.json") == b"two"
    assert other.child("trials").child("7").read("result.json") == b"two"
    assert open_storage(other.child("trials").location).read("12/result.json") == b""
    assert other.files() == ["top", "trials/12/result.json", "trials/7/result.json"]
    assert other.child("trials").folders() == ["12", "7"]
    assert other.exists("trials/7/result.json")
    assert not other.exists("trials/7")
    names = ["trials/7/result.json", "trials/12/result.json"]
    assert list(other.read_many(names)) == [b"two", b""]
    assert list(other.read_many(["gone", *names])) == [None, b"two", b""]
    with other.as_local_file("top") as path:
        assert path.read_bytes() == bytes(3 << 20)
    other.delete("top")
    assert not storage.exists("top")


def test_a_folder_is_removed_with_everything_below_it(storage: Storage, location: str) -> None:
    storage.remove()  # there is none
    assert storage.size() == 0
    for name in ("a/b/one", "a/two", "three"):
        storage.write(name, b"1234")
    assert storage.size() == 12
    storage.child("a").remove()
    assert storage.files() == ["three"]
    assert storage.folders() == []
    storage.remove()
    name = split(location)[1]
    assert name not in open_storage(split(location)[0]).folders()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    LocalStorage(tmp_path / "elsewhere").write("kept", b"1")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere")
    LocalStorage(tmp_path / "here").child("link").remove()
    assert (tmp_path / "elsewhere" / "kept").exists()
    assert LocalStorage(tmp_path / "here").folders() == []


def test_a_writer_that_fails_changes_nothing(storage: Storage) -> None:
    storage.write("a", b"old")

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no more")

    for name in ("a", "b"):
        with pytest.raises(RuntimeError):
            storage.write_with(name, fail)
    assert storage.files() == ["a"]
    assert storage.read("a") == b"old"


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.one_of(st.binary(max_size=20), st.just("reopen")), max_size=12))
def test_a_log_is_all_that_was_appended(steps: list[bytes | str], location: str) -> None:
    name = f"log-{time.monotonic_ns()}"
    storage, whole = open_storage(location), b""
    for step in steps:
        if isinstance(step, bytes):
            storage.append(name, step)
            whole += step
        else:
            storage = open_storage(location)
            assert storage.read_log(name) == whole
    assert open_storage(location).read_log(name) == whole


def test_locations_of_folders() -> None:
    assert join("s3://b/x/", "n") == "s3://b/x/n"
    assert join("s3://b/x?region=eu&scheme=http", "n") == "s3://b/x/n?region=eu&scheme=http"
    assert join("sweeps", "n") == str(Path.cwd() / "sweeps" / "n")
    for parent in ("s3://b/x", "s3://b/x?region=eu&scheme=http", "/x/what?", "/x/s3:"):
        assert split(join(parent, "n")) == (parent, "n")


@pytest.mark.parametrize("start", ["file:///", "file://localhost/", "file:/", "FILE:///"])
def test_a_file_uri_is_a_path_of_this_machine(start: str) -> None:
    assert local_folder(f"{start}a%20b/c?") == Path("/a b/c?")
    assert join(f"{start}a%20b", "n%") == "/a b/n%"


def test_no_secret_is_in_an_error() -> None:
    storage = open_storage("s3://KEY:hush@b/x?endpoint_override=127.0.0.1:9&scheme=http", 0.1)
    with pytest.raises(StorageError, match=r"s3://b/x\?endpoint") as error:
        storage.read("a")
    assert "hush" not in str(error.value)
    with pytest.raises(StorageError, match="Unexpected query parameter") as error:
        open_storage("s3://KEY:hu/sh@b/x?nonsense=1")
    assert "hu/sh" not in str(error.value)


@pytest.mark.parametrize("location", ["s4://bucket/x", "http://host/x", "s3://", "file://host/x"])
def test_an_unknown_place_is_refused(location: str) -> None:
    with pytest.raises(StorageError):
        open_storage(location, 0.1).probe()


def test_a_bucket_that_does_not_exist_is_refused_at_once(s3: S3) -> None:
    location = s3.location("x").replace("//bucket", "//missing")
    start = time.monotonic()
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        open_storage(location).probe()
    assert time.monotonic() - start < 5


def test_an_object_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        storage = open_storage(server.location("x"))
        storage.write("a", b"1")
        server.kill(down=2)
        start = time.monotonic()
        with pytest.raises(StorageError, match="Could not connect"):
            open_storage(server.location("x"), patience=0.5).read("a")
        server.wait()
        server.make_bucket()
        storage.write("b", b"2")
        assert storage.read("b") == b"2"
        assert time.monotonic() - start < 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_what_it_has(small_disk: Path) -> None:
    storage = LocalStorage(small_disk)
    storage.write("a", b"old")
    storage.append("log", b"line\n")
    (small_disk / "filler").write_bytes(bytes((1 << 20) - (3 << 12)))
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write("a", bytes(1 << 20))
    with pytest.raises(StorageError, match="No space left on device"):
        storage.append("log", bytes(1 << 20))
    assert storage.read("a") == b"old"
    assert storage.read_log("log") == b"line\n"
    assert storage.files() == ["a", "filler", "log"]
    assert not list(small_disk.glob(".*"))


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = LocalStorage(tmp_path / "file" / "x")
    with pytest.raises(StorageError, match=r"Not a directory|File exists"):
        storage.write("a", b"")


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path).child("a" * 300)
    for use in (storage.exists, storage.read, storage.delete):
        with pytest.raises(StorageError, match="File name too long"):
            use("x")
    with pytest.raises(StorageError, match="File name too long"):
        storage.folders()


def test_only_a_regular_file_is_read_or_appended_to(tmp_path: Path) -> None:
    """A named pipe would make a command wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    storage = LocalStorage(tmp_path)
    for name in ("pipe", "zero", "loop", "folder"):
        with pytest.raises(StorageError, match=f"{name}': it is a"):
            storage.read(name)
        with pytest.raises(StorageError, match=name):
            storage.append(name, b"x")


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_only_a_regular_file_is_replaced_or_removed(kind: str, tmp_path: Path) -> None:
    storage, path = LocalStorage(tmp_path / "here"), tmp_path / "here" / "result.json"
    (tmp_path / "elsewhere").write_text("kept")
    storage.write("other", b"")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    before = path.lstat()
    with pytest.raises(StorageError, match=r"result\.json.*not a regular file"):
        storage.write("result.json", b"new")
    with pytest.raises(StorageError, match=r"result\.json.*not a regular file"):
        storage.delete("result.json")
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert (tmp_path / "elsewhere").read_text() == "kept"
    assert {entry.name for entry in path.parent.iterdir()} == {"other", "result.json"}


def test_what_dead_writers_left_is_tidied_away(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("trials/1/result.json", b"1")
    half = tmp_path / "trials/1/.checkpoint.safetensors.abc"
    half.write_bytes(b"half")
    assert storage.files() == ["trials/1/result.json"]
    storage.clean_temporary_files()
    assert not half.exists()


def test_a_location_has_no_secrets(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS, "{}")
    clean = s3.location("secret")
    storage = open_storage(clean.replace("s3://", "s3://KEY:hu/sh@"), 0.1)
    assert storage.location == clean
    assert storage.child("a").location == join(clean, "a")
    storage.write("a", b"1")
    assert open_storage(clean).read("a") == b"1"


def test_nothing_is_missing_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files behind a linked folder are there, and a folder that cannot be listed is an error."""
    (tmp_path / "other-disk" / "0").mkdir(parents=True)
    (tmp_path / "other-disk" / "0" / "result.json").write_text("{}")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "trials").symlink_to(tmp_path / "other-disk")
    storage = LocalStorage(tmp_path / "sweep")
    assert storage.files() == ["trials/0/result.json"]
    scandir = os.scandir

    def away(path: str) -> object:
        if path.endswith("/0"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", away)
    with pytest.raises(StorageError, match="Stale file handle"):
        storage.files()
