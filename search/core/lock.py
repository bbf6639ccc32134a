"""One driver per sweep, on any number of hosts.

A driver that wants a sweep writes a claim into the sweep's folder and then looks for others, so of
two that start at the same time at least one sees the other. It renews its claim while it runs. If
another claim belongs to this machine, the operating system knows whether its driver is alive;
otherwise the claim is watched for a while, because the clocks of two hosts may differ. A driver
that was suspended for too long loses its claim and may not commit any more.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from search.core.problems import StoppedError, UsageError
from trainables.core.records import RecordError, read_record
from trainables.core.storage import Storage, StorageError, split

HEARTBEAT_SECONDS = 4.0
"""Seconds between two renewals of a claim."""
LEASE_SECONDS = 20.0
"""Seconds without a renewal after which a driver on another machine counts as dead."""
CLAIMS = "owner"
"""The folder with the claims on a sweep."""


class LostOwnershipError(StoppedError):
    """Another driver has taken the sweep over while this one was suspended."""


@dataclass(frozen=True)
class Claim:
    """A driver's claim on a sweep: the content of its file."""

    host: str
    """Name of the machine."""
    machine: str
    """Identifies machine, boot and container, within which process numbers are unique."""
    process: int
    """Process number on that machine."""
    started: str
    """Start time of the process in kernel ticks, since process numbers are reused."""
    since: str
    """Date and time, for people."""
    holds: bool = False
    """Whether the driver owns the sweep; before that it waits for it."""
    beat: int = 0
    """Counts renewals."""

    def is_dead(self, machine: str) -> bool | None:
        """Whether its driver is gone; None where this machine cannot know."""
        if self.machine != machine:
            return None
        return _started(self.process) != self.started


class SweepLock:
    """Ownership of a sweep, as a context manager."""

    def __init__(
        self,
        sweep: Storage,
        say: Callable[[str], None] = lambda _: None,
        otherwise: str = "start another sweep with --name",
    ) -> None:
        """`say` gets one line if the driver has to wait for another one. `otherwise` ends the error
        if another driver owns the sweep."""
        self._sweep, self._say, self._otherwise = sweep, say, otherwise
        self._claims = sweep.child(CLAIMS)
        self._name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._verified = _uptime()
        self._taken = False

    def __enter__(self) -> Self:
        """Raises `UsageError`, naming the holder, while another driver runs the sweep."""
        self._claim = Claim(
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _started(os.getpid()),
            time.strftime("%Y-%m-%d %H:%M:%S"),
        )
        self._write()
        self._thread = threading.Thread(target=self._renew, name="sweep-lock", daemon=True)
        self._thread.start()
        try:
            self._wait_for_other_owners()
            self._write(holds=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._claims.delete(self._name)
        except StorageError:
            self._say("The sweep could not be set free: the next driver waits some seconds.")

    def check(self) -> None:
        """Raises `LostOwnershipError` if another driver owns the sweep."""
        if not self._taken and _uptime() - self._verified > LEASE_SECONDS / 2:
            self._verify()
        if self._taken:
            raise LostOwnershipError(
                "this driver was suspended for so long that another one has taken the sweep over"
            )

    def _wait_for_other_owners(self) -> None:
        """Return when no other claim is left whose driver may live; raises `UsageError` for one
        that holds the sweep or came first. One that came later withdraws, or has looked before
        we were there and will hold."""
        watched: dict[str, tuple[Claim, float]] = {}
        while others := self._others():
            for name, other in others.items():
                dead = other.is_dead(self._claim.machine)
                if dead is None:
                    if name not in watched:
                        watched[name] = other, time.monotonic()
                        self._say(
                            f"Waiting up to {LEASE_SECONDS:.0f} s to see whether {_who(other)} "
                            "still runs this sweep."
                        )
                    known, since = watched[name]
                    if known != other:
                        dead = False
                    elif time.monotonic() - since > LEASE_SECONDS:
                        dead = True
                if dead:
                    self._claims.delete(name)
                elif dead is False and (other.holds or name < self._name):
                    raise UsageError([self._refusal(other)])
            time.sleep(0.1)

    def _others(self) -> dict[str, Claim]:
        claims = ((name, self._read(name)) for name in self._claims.files() if name != self._name)
        return {name: claim for name, claim in claims if claim is not None}

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._verify()

    def _verify(self) -> None:
        """Renew the claim, if it is still there."""
        asked = _uptime()
        try:
            if not self._claims.exists(self._name):
                self._taken = True
                return
            self._write()
            if _uptime() - asked > LEASE_SECONDS / 2:
                # Suspended before the write: that may have renewed a claim that another driver had
                # outwaited and deleted. It holds the sweep, or is about to.
                others = self._others().values()
                self._taken |= any(not other.is_dead(self._claim.machine) for other in others)
        except StorageError:
            return  # not known now: `check` asks again before anything is committed
        self._verified = asked

    def _write(self, holds: bool = False) -> None:
        """Renew the claim; once it holds the sweep, it does so to its end."""
        with self._writing:  # the driver and the thread that renews, each with what it has read
            claim = self._claim
            self._claim = replace(claim, holds=claim.holds or holds, beat=claim.beat + 1)
            self._claims.write(self._name, json.dumps(asdict(self._claim)).encode())

    def _read(self, name: str) -> Claim | None:
        try:
            return read_record(Claim, self._claims.read(name))
        except FileNotFoundError:
            return None
        except RecordError:
            self._claims.delete(name)  # no driver of this version has written it
            return None

    def _refusal(self, other: Claim) -> str:
        _, name = split(self._sweep.location)
        return (
            f"One driver at a time may run a sweep, and '{name}' is being run already by "
            f"{_who(other)} since {other.since}. Wait for it, stop it, or {self._otherwise}."
        )


def running(sweep: Storage) -> str | None:
    """The driver that runs the sweep, or None.

    A dead driver on this machine is ignored; one on another machine counts while its claim exists.
    Changes nothing.
    """
    claims = sweep.child(CLAIMS)
    for name in claims.files():
        try:
            claim = read_record(Claim, claims.read(name))
        except (FileNotFoundError, RecordError):
            continue
        if claim.holds and not claim.is_dead(_machine()):
            return _who(claim)
    return None


def _who(claim: Claim) -> str:
    return f"process {claim.process} on {claim.host}"


def _uptime() -> float:
    """Monotonic seconds, including those for which the machine was suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str:
    """Name, boot and process namespace, which together make process numbers unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, namespace = "", ""
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _started(process: int) -> str:
    """Start time of a process; empty if it does not exist or has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
