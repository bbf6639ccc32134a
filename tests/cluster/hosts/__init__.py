"""Hosts on one machine, for tests that need a network between processes.

A host is a set of Linux namespaces: it has its own file system (the machine's, copied on write),
processes, name, network card and ssh server. All hosts of a test share an outer set of namespaces,
which ends with its first process. That process reads from a pipe that the test holds, so the kernel
removes everything, however the test ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[3]
_BOOT = Path(__file__).with_name("boot.sh")
_TOOLS = ("unshare", "nsenter", "ip", "ssh", "sshd", "ssh-keygen", "rsync", "pgrep")
_NEEDED = [str(ROOT), *dict.fromkeys((sys.prefix, sys.base_prefix))]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"HOME": "/home/ray", "USER": "root", "TERM": "xterm", "PATH": _PATH}
_NETWORK = """
mount -t tmpfs hosts "$1" && mkdir "$1/keys" && cd "$1/keys" &&
ssh-keygen -q -t ed25519 -N '' -f id_ed25519 &&
{ echo 127.0.0.1 localhost; printf '%b' "$2"; } > hosts && echo 0 > cores &&
ip link set lo up && ip link add lan type bridge && ip link set lan up && echo ready && read
"""


def why_not() -> str | None:
    """The reason why hosts cannot be created here, or None if they can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"these programs are needed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "only root can make namespaces with a network"
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Hosts(Path(folder), ["probe"], patience=10) as hosts,
        ):
            hosts.run("probe", "true", timeout=10)
    except (OSError, subprocess.SubprocessError, HostError) as error:
        return f"namespaces cannot be made here: {error}"
    return None


class HostError(Exception):
    """A host did not start."""


class Hosts:
    """Hosts with the given names, on an isolated network."""

    def __init__(self, mount_point: Path, names: Sequence[str], patience: float = 30) -> None:
        """Switch on all hosts.

        Args:
            mount_point: an existing folder; the hosts' disks are mounted there, seen by them only.
            names: host names, which they can reach each other by.
            patience: seconds that a host may need until its ssh server answers.
        """
        self.address = {name: f"10.77.0.{10 + i}" for i, name in enumerate(names)}
        self._disks = mount_point
        self._patience = patience
        self._boots: dict[str, subprocess.Popen[bytes]] = {}
        self._pids: dict[str, int] = {}
        table = "".join(f"{address} {name}\\n" for name, address in self.address.items())
        flags = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._network = subprocess.Popen(
            ["unshare", *flags, "bash", "-c", _NETWORK, "network", str(mount_point), table],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PATH": _PATH},
        )
        try:
            assert self._network.stdout is not None
            if self._network.stdout.readline() != b"ready\n":
                raise HostError(self._errors(self._network))
            (self._inside,) = _children(self._network.pid)
            for name in names:
                self.power_on(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        self._network.kill()  # when its parent dies, the namespace and everything in it is removed
        for process in [*self._boots.values(), self._network]:
            process.wait(timeout=30)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._boots.clear()

    def command(self, host: str, command: str) -> list[str]:
        """Arguments that run a shell command on a host as if its user had logged in."""
        environment = [f"{key}={value}" for key, value in _ENVIRONMENT.items()]
        enter = ["nsenter", "-t", str(self._pids[host]), "-m", "-u", "-i", "-n", "-p"]
        shell = ["bash", "-c", f"cd; [ -e ~/.bashrc ] && PS1=$ source ~/.bashrc; {command}"]
        return [*enter, "env", "-i", *environment, *shell]

    def run(
        self, host: str, command: str, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host."""
        return subprocess.run(
            self.command(host, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )

    def cut(self, host: str) -> None:
        """Disconnect the network cable."""
        self._ip("link", "set", host, "down")

    def heal(self, host: str) -> None:
        """Reconnect the network cable."""
        self._ip("link", "set", host, "up")

    def power_off(self, host: str) -> None:
        """Cut the power: no process can send or write anything more."""
        self.cut(host)
        subprocess.run(["kill", "-9", str(self._pids.pop(host))], check=True)
        self._ip("link", "delete", host)
        boot = self._boots.pop(host)
        boot.wait(timeout=30)
        if boot.stderr is not None:
            boot.stderr.close()

    def power_on(self, host: str) -> None:
        """Boot; the disk is unchanged, /tmp is empty."""
        inside = ["nsenter", "-t", str(self._inside), "-m", "-n", "-p"]
        own = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        folders = [str(self._disks / host), str(self._disks / "keys")]
        boot = subprocess.Popen(
            [*inside, "unshare", *own, "bash", str(_BOOT), host, *folders, *_NEEDED],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PATH": _PATH},
        )
        self._boots[host] = boot
        deadline = time.monotonic() + self._patience
        while not (pid := _descendant(boot.pid, 2)):
            self._still_booting(host, boot, deadline)
        self._pids[host] = pid
        hardware = f"02:00:00:00:00:{self.address[host].rpartition('.')[2]}"
        card = ["type", "veth", "peer", "name", "eth0", "address", hardware, "netns", str(pid)]
        self._ip("link", "add", host, *card)
        self._ip("link", "set", host, "master", "lan", "up")
        network = ["nsenter", "-t", str(pid), "-n"]
        address = f"{self.address[host]}/24"
        subprocess.run([*network, "ip", "addr", "add", address, "dev", "eth0"], check=True)
        subprocess.run([*network, "ip", "link", "set", "eth0", "up"], check=True)
        knock = [*network, "bash", "-c", ": < /dev/tcp/127.0.0.1/22"]
        while subprocess.run(knock, capture_output=True, check=False).returncode:
            self._still_booting(host, boot, deadline)

    def _still_booting(self, host: str, boot: subprocess.Popen[bytes], deadline: float) -> None:
        if boot.poll() is not None or time.monotonic() > deadline:
            raise HostError(f"{host} did not boot: {self._errors(boot)}")
        time.sleep(0.02)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._inside), "-n", "ip", *arguments], check=True)

    @staticmethod
    def _errors(process: subprocess.Popen[bytes]) -> str:
        process.kill()
        assert process.stderr is not None
        return process.stderr.read().decode(errors="replace").strip()


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def _descendant(pid: int, generations: int) -> int | None:
    for _ in range(generations):
        children = _children(pid)
        if not children:
            return None
        (pid,) = children
    return pid
