from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

import pytest

from dure.hardware.driver import Host, LibraryAbsent, run_tool
from dure.model.errors import DureError


def test_a_tool_answers() -> None:
    done = run_tool(["sh", "-c", "echo 온도; echo hot >&2; exit 3"], 10)
    assert (done.code, done.stdout, done.stderr) == (3, "온도\n", "hot\n")


def test_a_tool_killed_by_a_signal_has_a_negative_code() -> None:
    assert run_tool(["sh", "-c", "kill -9 $$"], 10).code == -9


def test_output_that_is_not_text_is_replaced() -> None:
    assert run_tool(["printf", "\\377"], 10).stdout == "\ufffd"


def test_a_missing_tool_is_an_absent_library() -> None:
    with pytest.raises(LibraryAbsent, match="no-such-smi is not installed"):
        run_tool(["no-such-smi", "--json"], 1)


@pytest.mark.parametrize("argv", [["/etc/passwd"], ["/"], ["echo", "nul\0byte"]])
def test_a_tool_that_cannot_start_is_a_failure(argv: list[str]) -> None:
    with pytest.raises(DureError, match="cannot be started") as caught:
        run_tool(argv, 1)
    assert not isinstance(caught.value, LibraryAbsent)


def running(argument: str) -> bool:
    """Some process has this word among its arguments."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in cmdline.read_bytes().split(b"\0"):
                return True
    return False


def test_a_hanging_tool_is_killed_with_its_children() -> None:
    mark = f"300.{os.getpid():07d}"
    with pytest.raises(DureError, match=re.escape("did not answer within 0.5 s")):
        run_tool(["sh", "-c", f"sleep {mark} & wait"], 0.5)
    deadline = time.monotonic() + 20
    while running(mark):
        assert time.monotonic() < deadline, "the tool's child lives on"


def test_a_tool_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURE_KEY", "secret")
    assert "secret" not in run_tool(["env"], 10).stdout


def test_a_host_reads_below_its_root(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/x").write_bytes(b"ab\xff")
    host = Host(root=tmp_path)
    assert host.read("proc/x") == "ab\ufffd"
    assert host.read("proc/absent") is None
    assert host.read("proc") is None


def test_this_process_may_run_somewhere() -> None:
    assert Host().allowed_cpus()
