"""Folders that are moved, linked and copied: which sweep they hold."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from search.core.config import SweepConfig
from search.core.sweep_folder import SWEEP_FILE, SweepFolder, SweepRecord, find_sweep
from tests.servers import s3_server
from trainables.core.storage import LocalStorage, Storage, StorageError, open_storage


def record(sweep: Storage) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(sweep.read(SWEEP_FILE))
    return found


def write(sweep: Storage, name: str) -> None:
    SweepFolder(sweep).write_record(SweepRecord(name, SweepConfig(seed=3), {}, sweep.location))


def identify(sweep: Storage) -> str:
    found = SweepFolder(sweep).claim_id()
    assert found == record(sweep)["id"] == SweepFolder(sweep).claim_id()
    return found


@pytest.fixture
def base(tmp_path: Path) -> LocalStorage:
    sweep = LocalStorage(tmp_path / "base")
    write(sweep, "a")
    return sweep


def test_a_copy_is_a_sweep_of_its_own(base: LocalStorage, caplog: pytest.LogCaptureFixture) -> None:
    twin = LocalStorage(base.root.with_name("twin"))
    shutil.copytree(base.root, twin.root)
    assert identify(twin) not in ("", "a")
    assert SweepFolder(twin).record.config == SweepConfig(seed=3)
    assert f"'{twin.location}' is a copy of '{base.location}'" in caplog.text
    assert identify(base) == "a"


@pytest.mark.parametrize("meanwhile", ["nothing", "another", "damaged"])
def test_a_folder_that_was_moved_holds_the_same_sweep(base: LocalStorage, meanwhile: str) -> None:
    moved = LocalStorage(base.root.with_name("moved"))
    base.root.rename(moved.root)
    if meanwhile == "another":
        write(base, "b")
    if meanwhile == "damaged":
        base.write(SWEEP_FILE, b"[]")
    assert identify(moved) == "a"
    assert record(moved)["location"] == moved.location


def test_two_ways_to_one_folder_are_no_copy(base: LocalStorage) -> None:
    link = base.root.with_name("link")
    link.symlink_to(base.root)
    assert identify(LocalStorage(link)) == identify(base) == "a"
    assert base.files() == LocalStorage(link).files()


def test_a_copy_in_a_bucket_and_no_secret_in_its_record(tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        base = server.location("base")
        write(open_storage(base), "a")
        copied = SweepFolder(open_storage(base)).record
        SweepFolder(open_storage(server.location("twin"))).write_record(copied)
        key = base.replace("s3://", "s3://me:x@")
        assert identify(open_storage(key)) == "a"
        twin = open_storage(server.location("twin").replace("s3://", "s3://me:x@"))
        assert identify(twin) != "a"
        assert record(twin)["location"] == server.location("twin")


def test_a_bucket_that_does_not_answer_is_an_error_after_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        away = "sweeps?endpoint_override=127.0.0.1:9&scheme=http"
        buckets = (f"s3://bucket/{away}", f"gs://anonymous@bucket/{away}")
        for found in [pool.submit(find_sweep, "mine", bucket) for bucket in buckets]:
            with pytest.raises(StorageError, match=r"(?i)could not connect"):
                found.result()
    assert time.monotonic() - start < 20
