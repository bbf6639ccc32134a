"""The test hosts are isolated, connected by a network, and removed afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import ROOT, HostError, Hosts, why_not

SSH = "ssh -o StrictHostKeyChecking=no -o ConnectTimeout=2 -i /etc/ssh/test_host_key"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(tmp_path, ["one", "two"]) as hosts:
        yield hosts


def answers(hosts: Hosts, command: str) -> bool:
    return hosts.run("one", command, check=False).returncode == 0


def comes_back(hosts: Hosts, command: str) -> bool:
    """A network card needs a second or two to detect that its cable is back."""
    return any(answers(hosts, command) for _ in range(5))


def test_each_has_its_own_name_files_processes_and_one_core(pair: Hosts) -> None:
    cores = f"{sys.executable} -c 'import os; print(os.cpu_count())'"
    for name in ("one", "two"):
        assert pair.run(name, "hostname").stdout == f"{name}\n"
        assert pair.run(name, cores).stdout == "1\n"
    marker = ROOT / "pyproject.toml"
    pair.run("one", f"echo mine > /tmp/file; echo mine > ~/file; echo mine > {marker}")
    assert not answers(pair, "ls /proc/self/../" + str(os.getpid()))
    assert pair.run("two", "ls /tmp/file ~/file", check=False).stdout == ""
    assert pair.run("two", f"cat {marker}").stdout == marker.read_text() != "mine\n"


def test_they_reach_each_other_by_ssh_and_nobody_else(pair: Hosts) -> None:
    assert pair.run("one", f"{SSH} two hostname").stdout == "two\n"
    routes = pair.run("one", "ip route").stdout.splitlines()
    assert len(routes) == 1
    assert routes[0].startswith("10.77.0.0/24 ")


def test_a_cut_cable_and_a_power_cut(pair: Hosts) -> None:
    hello = f"{SSH} two true"
    pair.cut("two")
    assert not answers(pair, hello)
    pair.heal("two")
    assert comes_back(pair, hello)
    pair.run("two", "echo kept > ~/file; echo lost > /tmp/file; sleep 1000 >/dev/null 2>&1 &")
    pair.power_off("two")
    assert not answers(pair, hello)
    pair.power_on("two")
    assert comes_back(pair, hello)
    assert pair.run("two", "cat ~/file").stdout == "kept\n"
    assert pair.run("two", "ls /tmp/file; pgrep sleep", check=False).stdout == ""


def test_nothing_remains(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    code = (
        "from pathlib import Path; from tests.cluster.hosts import Hosts; import time;"
        f"hosts = Hosts(Path({str(tmp_path)!r}), ['only']);"
        "print(hosts.run('only', 'sleep 4321 >/dev/null 2>&1 & echo up').stdout, flush=True);"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert _running("sleep 4321")
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _running("sleep 4321") or _running(str(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_boot_says_why(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with pytest.raises(HostError, match="mount point does not exist"):
        Hosts(tmp_path / "absent", ["one"])


def test_where_hosts_cannot_be_made_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda tool, path: f"/bin/{tool}")
    assert why_not() == "only root can make namespaces with a network"
    monkeypatch.setattr("shutil.which", lambda tool, path: None if tool == "sshd" else tool)
    assert why_not() == "these programs are needed: sshd"


def _running(command: str) -> bool:
    return (
        subprocess.run(["pgrep", "-f", command], capture_output=True, check=False).returncode == 0
    )
