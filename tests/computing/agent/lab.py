"""A home with real holds in it, and what tests ask of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from dure.computing.agent import processes
from dure.computing.agent.run import Site
from dure.computing.agent.runs import HoldStatus, Process, RunFolder, deadline_ns, folders, home_id
from dure.model.chip import Chip
from dure.model.wire import RunSpec
from dure.model.workload import Command, Exit, Serve, Slice

T = TypeVar("T")
PATIENCE_S = 30.0
IGNORES_TERM = ("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done")
SLEEPS = ("sleep", "1000")


def until(probe: Callable[[], T | None]) -> T:
    """The first value of `probe` that is neither None nor False."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        value = probe()
        if value is not None and value is not False:
            return value
        time.sleep(0.01)
    raise AssertionError("it never came true")


def chip(name: str, index: int = 0, kind: str = "cpu", run_s: float | None = None) -> Chip:
    source = "simulated" if kind.startswith("sim-") else "real"
    return msgspec.convert(
        {
            "id": f"n:{name}",
            "node": "n",
            "kind": kind,
            "index": index,
            "vendor": "",
            "model": "",
            "source": source,
            "driver": "",
            "tested_on": "none",
            "run_s": run_s,
        },
        Chip,
    )


def spec(run: str, work: Command | Serve, *slices: tuple[str, int]) -> RunSpec:
    pieces = tuple(Slice(name, milli) for name, milli in slices or [("n:cpu0", 100)])
    return RunSpec(run, run.partition(".")[0], "default", work, pieces)


class Lab:
    """`home` with one core; `cpus` are the ones this process may use."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home = home
        self.id = home_id(home)
        self.cpus = sorted(os.sched_getaffinity(0))
        self.spawned: list[int] = []

    def site(self, *more: Chip) -> Site:
        chips = (chip("cpu0", self.cpus[0]), chip("sim-npu-0", kind="sim-npu", run_s=0.05), *more)
        return Site(self.home, self.id, "link-key", {each.id: each for each in chips}, os.environ["PATH"])

    def write(
        self, run: str, argv: Sequence[str], milli: int = 100, lease_s: float = 60, grace_s: float = 5
    ) -> RunFolder:
        folder = RunFolder(self.home, run)
        asked = spec(run, Command(tuple(argv)), ("n:cpu0", milli))
        process = Process(tuple(argv), folder.environment(asked, (0,), self.id, os.environ["PATH"]))
        folder.write(asked, process, (self.cpus[0],), deadline_ns(lease_s))
        written = folder.written()
        assert written is not None
        changed = msgspec.structs.replace(written, grace_s=grace_s)
        (folder.path / "spec.json").write_bytes(msgspec.json.encode(changed))
        return folder

    def spawn(self, folder: RunFolder) -> int:
        pid = folder.spawn()
        self.spawned.append(pid)
        return pid

    def start(
        self, run: str, argv: Sequence[str], milli: int = 100, lease_s: float = 60, grace_s: float = 5
    ) -> tuple[RunFolder, HoldStatus]:
        """Written, spawned, and past `starting`."""
        folder = self.write(run, argv, milli, lease_s, grace_s)
        self.spawn(folder)
        return folder, until(lambda: past_starting(folder))

    def live_pids(self) -> list[int]:
        """Processes of this home's runs, holds not counted."""
        return list(processes.strays(self.id))

    def clear(self) -> None:
        """End every hold and whatever it left, by their own pids."""
        for folder in folders(self.home):
            status = folder.status()
            if status is not None and status.phase != "ended":
                fd = processes.open_pidfd(status.hold_pid, status.hold_start)
                if fd is not None:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    os.close(fd)
        processes.kill_strays(self.id, lambda run: True)
        for pid in self.spawned:
            reap(pid)


def past_starting(folder: RunFolder) -> HoldStatus | None:
    status = folder.status()
    return status if status is not None and status.phase != "starting" else None


def exit_of(folder: RunFolder) -> Exit:
    """Waits for the end."""

    def ended() -> Exit | None:
        status = folder.status()
        return status.exit if status is not None else None

    return until(ended)


def output(folder: RunFolder) -> str:
    return (folder.read_log(0, 1 << 20) or b"").decode()


def reap(pid: int) -> None:
    """Kill and collect a child of this process, if it still is one."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def lives(pid: int) -> bool:
    """There is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_said(folder: RunFolder) -> int:
    """The number on the first line of the output."""

    def first() -> int | None:
        line = output(folder).partition("\n")
        return int(line[0]) if line[1] else None

    return until(first)
