"""Calls in a fresh process: results, exceptions, and every way in which the process can fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from search.core.child_process import ChildError, ChildProcess, call_in_child


def test_a_module_s_functions_are_called_in_another_process() -> None:
    with ChildProcess("os") as child:
        other = child.call("getpid")
        assert other != os.getpid()
        assert child.call("getpid") == other
        assert child.call("fspath", "é\ud800\n\0") == "é\ud800\n\0"
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_a_class_is_constructed_once() -> None:
    with ChildProcess("random:Random", 7) as child:
        assert child.call("random") != child.call("random")
    assert call_in_child("operator", "add", [1], [2.5]) == [1, 2.5]


def test_what_the_child_prints_is_no_reply() -> None:
    with ChildProcess("builtins") as child:
        assert child.call("print", '{"result": 3}') is None
        assert child.call("len", "abc") == 3


def test_exceptions_come_back_as_named() -> None:
    with ChildProcess("math", raises=(ValueError,)) as child:
        with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
            child.call("sqrt", -1)
        with pytest.raises(ChildError, match=r"^TypeError: must be real number, not str$"):
            child.call("sqrt", "x")
        with pytest.raises(ChildError, match=r"AttributeError: .*no attribute 'nothing'"):
            child.call("nothing")
        assert child.call("sqrt", 9) == 3
    with ChildProcess("no_such_module") as child, pytest.raises(ChildError, match="no_such_mod"):
        child.call("anything")


def test_a_result_that_json_does_not_hold() -> None:
    with pytest.raises(ChildError, match="not JSON serializable"):
        call_in_child("builtins", "object")


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_ends(code: int) -> None:
    with ChildProcess("os") as child, pytest.raises(ChildError, match=f"with exit code {code}$"):
        child.call("_exit", code)


@pytest.mark.parametrize(
    ("sent", "message"),
    [(signal.SIGKILL, "killed .*memory runs out"), (signal.SIGSEGV, "killed by SIGSEGV")],
)
def test_a_process_that_is_killed(sent: signal.Signals, message: str) -> None:
    with ChildProcess("os") as child:
        process = child.call("getpid")
        os.kill(process, sent)
        time.sleep(0.1)
        with pytest.raises(ChildError, match=message) as caught:
            child.call("getpid")
        assert "\n" not in str(caught.value)


def test_the_last_line_of_its_errors_explains_its_end() -> None:
    with (
        ChildProcess("sys") as child,
        pytest.raises(ChildError, match=r"ended with exit code 1: out of luck$"),
    ):
        child.call("exit", "some line\nout of luck")


def test_a_process_that_hangs() -> None:
    start = time.monotonic()
    with pytest.raises(ChildError, match=r"more than 0\.5 s"):
        call_in_child("time", "sleep", 60, timeout=0.5)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("garbage", ["hello\n", "[]\n", '"error"\n', "{}\n", "[" * 30_000 + "\n"])
def test_a_process_that_replies_with_something_else(garbage: str, tmp_path: Path) -> None:
    with ChildProcess("os") as child:
        process = child.call("getpid")
        pipe = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[3].decode()
        Path(f"/proc/{process}/fd/{pipe}").write_text(garbage)
        with pytest.raises(ChildError, match="instead of JSON"):
            child.call("getpid")
