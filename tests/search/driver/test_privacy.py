"""Another user of the machine can find no secret of a sweep."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from secrets import token_hex

import pytest

from tests.search.conftest import Sweep, as_another_user
from tests.servers import S3_CREDENTIALS, s3_server
from trainables.core.storage import open_storage

pytestmark = pytest.mark.slow

# Random, so that no copy of this file contains them; the slash and the plus need quoting in a URI.
WORD = token_hex(8)
KEY, SECRET, PASSWORD = "AKIAHUSHHUSHHUSH", f"hush/{WORD}+7531", f"quiet{WORD}"
SMALL = ("--space", "taskres", "--shots", "4", "--seeds", "1", "--eval-seeds", "1")


def found_by_another_user(since: float) -> str:
    """Search all disks, shared memory and command lines for secrets, with the rights of another
    user; return what is found."""
    # With brackets, so that the search does not find its own command line.
    words = f"[{WORD[0]}]{WORD[1:]}"
    search = f"""
    find / /dev/shm -xdev -type f -newermt @{since:.0f} -readable \\
        -not -path '/proc/*' -not -path '/sys/*' -exec grep -laE '{words}' {{}} +
    for file in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do
        if grep -qaE '{words}' "$file"; then tr '\\0' ' ' < "$file"; fi
    done
    """
    return as_another_user("sh", "-c", search).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_secrets_of_storage_and_tracking_are_seen_by_nobody(tmp_path: Path) -> None:
    """While the sweep runs, after it was killed, and after it finished."""
    marker = Path(tempfile.gettempdir()) / f"marker-{os.getpid()}"
    since = time.time() - 1
    marker.write_text(SECRET)
    try:  # the search works
        marker.chmod(0o644)
        assert str(marker) in found_by_another_user(since)
    finally:
        marker.unlink()
    with s3_server(tmp_path) as server:
        location = server.location("sweeps")
        sweep = Sweep(tmp_path, "test", location.replace("s3://", f"s3://{KEY}:{SECRET}@"))
        options = (*SMALL, "--checkpoint-seconds", "0")
        options = (*options, "--tracking-uri", f"http://ada:{PASSWORD}@127.0.0.1:9")
        folder = open_storage(location).child("test")
        with pytest.MonkeyPatch.context() as patch:
            for name in S3_CREDENTIALS:
                if "REGION" not in name:
                    patch.delenv(name)
            process = sweep.start(*options, "--trials", "40")
            try:
                sweep.wait_until(lambda: folder.exists("trials/000002/result.json"))
                assert found_by_another_user(since) == ""
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert found_by_another_user(since) == ""
            done = sweep.run_alone(*options, "--trials", "4")
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        assert found_by_another_user(since) == ""
        for name in folder.files():
            content = folder.read(name)
            assert SECRET.encode() not in content, name
            assert PASSWORD.encode() not in content, name
