"""`dure up` as a real process over a home of its own, and what of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from dure.client import ApiError, Client, find
from dure.model.errors import DureError
from dure.model.view import RunView
from dure.model.workload import Ask, ChipAsk, Command

T = TypeVar("T")
PATIENCE_S = 60.0


def until(probe: Callable[[], T | None], what: str) -> T:
    """The first value of `probe` that is neither None nor False; an answer of the cloud that fails is none."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(ApiError, DureError):
            value = probe()
            if value is not None and value is not False:
                return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Up:
    """`close` ends whatever is left of it, by its own pids."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[str] | None = None
        self.clients: list[Client] = []

    def start(self, *options: str, port: int = 0) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "dure.app.up", "--home", str(self.home), "--port", str(port), *options]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return self.process

    def ready(self, *options: str) -> Client:
        """Start it without a model, and wait until it says so."""
        process = self.start("--no-model", *options)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:"), (line, process.communicate(timeout=PATIENCE_S))
        return self.client()

    def client(self) -> Client:
        made = find(self.home)
        self.clients.append(made)
        return made

    def ends(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def fails(self, *options: str, port: int = 0) -> str:
        """It must not start; what it says instead of starting."""
        self.start("--no-model", *options, port=port)
        code, out, err = self.ends()
        assert code == 1 and out == "" and "Traceback" not in err, (code, out, err)
        return err

    def signal(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        assert self.process is not None
        self.process.send_signal(number)
        return self.ends()

    def pids(self) -> dict[str, int]:
        return {str(name): int(pid) for name, pid in json.loads((self.home / "run" / "pids.json").read_text()).items()}

    def left(self) -> dict[int, str]:
        """Processes of this home, by their arguments or environment."""
        marks = [str(self.home).encode()]
        with suppress(OSError):
            marks.append(b"DURE_HOME_ID=" + (self.home / "home.id").read_bytes())
        return {pid: text[:200].decode("utf-8", "replace") for pid, text in _others() if any(m in text for m in marks)}

    def nothing_left(self) -> None:
        until(lambda: not self.left(), f"{self.left()} to end")
        for name in ("url", "run/pids.json"):
            assert not (self.home / name).exists(), f"{name} is left"

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        deadline = time.monotonic() + PATIENCE_S
        while (left := self.left()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def _others() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if stat != "Z":
                    yield int(entry.name), (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()


def submit(client: Client, *argv: str) -> str:
    return client.submit([Ask(Command(argv), ChipAsk("cpu", 1, 100))])[0].id


def running(client: Client, id: str) -> RunView:
    """Waits until its process runs."""

    def run() -> RunView | None:
        runs = client.workload(id).runs
        return runs[0] if runs and runs[0].phase == "running" and runs[0].pid else None

    return until(run, f"{id} to run")


def phase(client: Client, id: str, *wanted: str) -> str:
    """Waits until it is in one of these phases."""
    return until(lambda: p if (p := client.workload(id).phase) in wanted else None, f"{id} to be {wanted}")
