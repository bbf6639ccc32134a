"""Functions called in a fresh Python process, by JSON messages.

    with ChildProcess("search.driver.backbone_probe:BackboneProbe", "ViT-B-16") as child:
        facts = child.call("facts")

The target is a module, or a class in it that the child constructs once, with the arguments given.
`call` runs one of its functions or methods and returns what it returned; arguments and results
are whatever JSON holds. Requests go through the child's standard input, replies through a pipe of
their own: what the child prints goes to standard error and is never mistaken for a reply. A child
that dies, hangs or replies with something else ends in one `ChildError` with one line.
"""

from __future__ import annotations

import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Self


class ChildError(RuntimeError):
    """The child process could not reply; the message is one line without a full stop."""


class ChildProcess:
    """One child process; it starts in the constructor and is killed at the end of `with`."""

    def __init__(
        self,
        target: str,
        *arguments: Any,
        raises: tuple[type[Exception], ...] = (),
        env: Mapping[str, str] | None = None,
        show_errors: bool = False,
    ) -> None:
        """`raises` are exception types that `call` raises again, with the child's message; every
        other exception in the child is a `ChildError`. With `show_errors` the child shares this
        process's standard error (for progress bars); otherwise it goes to a temporary file, whose
        last line explains a death.
        """
        self._raises = {_type_name(kind): kind for kind in raises}
        self._stderr = None if show_errors else tempfile.TemporaryFile()  # noqa: SIM115
        self._replies, child_end = os.pipe()
        self._pending = b""
        command = [sys.executable, "-m", "search.core.child_process", str(child_end), target]
        try:
            self._process = subprocess.Popen(
                [*command, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=None if env is None else dict(env),
                pass_fds=[child_end],
                process_group=0,  # Ctrl-C is for the parent, which ends this process too
            )
        finally:
            os.close(child_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._replies)
        if self._stderr is not None:
            self._stderr.close()

    def call(self, function: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Return `function(*arguments)` of the target, run in the child.

        Raises `ChildError`, and the exceptions named by `raises`.
        """
        request = json.dumps({"function": function, "arguments": arguments}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except OSError:  # it has died: `_death` explains it
            pass
        line = self._read_line(None if timeout is None else time.monotonic() + timeout, timeout)
        try:
            reply = json.loads(line)
            if "error" not in reply:
                return reply["result"]
            kind, message = str(reply["error"]), str(reply["message"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ChildError(f"its process replied {line[:80]!r} instead of JSON") from None
        if kind in self._raises:
            raise self._raises[kind](message)
        raise ChildError(f"{kind.rpartition('.')[2]}: {' '.join(message.split())[:300]}")

    def _read_line(self, deadline: float | None, timeout: float | None) -> bytes:
        while b"\n" not in self._pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            waiting = select.poll()  # `select.select` refuses numbers of files above 1023
            waiting.register(self._replies, select.POLLIN)
            if not waiting.poll(None if left is None else 1e3 * left):
                raise ChildError(f"its process took more than {timeout:g} s")
            if not (part := os.read(self._replies, 1 << 16)):
                raise ChildError(self._death())
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _death(self) -> str:
        """How the process ended, in one line."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed its connection"
        if code == -signal.SIGKILL:
            return "its process was killed (SIGKILL), which the system does when memory runs out"
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        lines: list[str] = []
        if self._stderr is not None:
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()[:300]}" if lines else ""
        return f"its process ended with exit code {code}{last}"


def call_in_child(
    module: str,
    function: str,
    *arguments: Any,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Return `function(*arguments)` of `module`, run in a process that ends with it; raises
    `ChildError`."""
    with ChildProcess(module, env=env) as child:
        return child.call(function, *arguments, timeout=timeout)


def _type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _serve(replies: int, target: str, arguments: list[Any]) -> None:
    """The child: one reply per request, until standard input ends."""
    server: Any = None
    with os.fdopen(replies, "w", encoding="utf-8") as out:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if server is None:
                    found = pkgutil.resolve_name(target)
                    server = found(*arguments) if isinstance(found, type) else found
                result = getattr(server, request["function"])(*request["arguments"])
                reply = json.dumps({"result": result})
            except Exception as error:
                reply = json.dumps({"error": _type_name(type(error)), "message": str(error)})
            out.write(reply + "\n")
            out.flush()


if __name__ == "__main__":
    os.dup2(2, 1)  # what libraries print
    try:
        _serve(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
    except BrokenPipeError:  # the parent was killed
        os._exit(1)
