"""The command as a process: pipes, signals, full disks, and what it loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.client import samples
from tests.client.fake_control import KEY, FakeControl

pytestmark = pytest.mark.slow  # real processes

DURE = [sys.executable, "-c", "from dure.cli.main import main; main()"]
STREAM = b'data: {"choices":[{"delta":{"content":"one "}}]}\n\n'


def environment(control: FakeControl) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DURE_")}
    return kept | {"DURE_URL": control.url, "DURE_KEY": KEY, "PYTHONUNBUFFERED": ""}


def start(control: FakeControl, *args: str | bytes, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """As from a terminal: whoever runs the tests in the background has SIGINT ignored, which children inherit."""
    return subprocess.Popen(
        [*DURE, *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment(control),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out or b"", err


def test_a_reader_who_leaves_is_no_error(control: FakeControl) -> None:
    control.on("GET /api/workloads/w1/log?offset=0&wait_s=0", samples.a_log(b"x" * 200_000, 200_000, False))
    control.on("GET /api/workloads/w1/log?run=w1.0.1&offset=200000&wait_s=0", samples.a_log(b"", 200_000, True))
    process = start(control, "logs", "w1")
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    process.stdout = None
    code, _, err = finish(process)
    assert (code, err) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told(control: FakeControl) -> None:
    control.on("GET /api/keys", samples.KEYS)
    with open("/dev/full", "wb") as full:
        code, _, err = finish(start(control, "key", "list", stdout=full.fileno()))
    assert (code, err) == (1, b"dure: The output cannot be written\nNo space left on device\n")


def test_ctrl_c_is_quiet_and_130(control: FakeControl) -> None:
    held, go = threading.Event(), threading.Event()
    answer = control.next

    def hold(seen: object) -> object:
        held.set()
        go.wait(30)
        return answer(seen)  # type: ignore[arg-type]

    control.next = hold  # type: ignore[assignment, method-assign]
    process = start(control, "ps")
    try:
        assert held.wait(30)
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
    finally:
        go.set()
    assert (code, out, err) == (130, b"", b"")


def test_words_that_are_no_text_are_told(control: FakeControl) -> None:
    code, out, err = finish(start(control, "submit", "--", b"a\xff"))
    assert (code, out) == (1, b"")
    assert b"not UTF-8" in err and b"Traceback" not in err


def test_a_terminal_that_cannot_show_a_word_gets_the_rest(control: FakeControl) -> None:
    control.on("GET /api/projects", samples.PROJECTS)
    env = environment(control) | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*DURE, "project", "list"], capture_output=True, env=env, timeout=30, check=True)
    assert b"default" in done.stdout and b"??" in done.stdout


def test_only_what_a_listing_needs_is_loaded(control: FakeControl) -> None:
    control.on("GET /api/workloads", [samples.a_job()])
    code = (
        "import sys\nfrom dure.cli.main import main\n"
        "try: main(['ps'])\n"
        "finally: print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(control), timeout=30, check=True
    )
    loaded = set(done.stderr.decode().split())
    assert "dure" in loaded and not loaded & {"rich", "aiohttp", "asyncio", "litestar", "numpy", "httpx", "uvicorn"}
