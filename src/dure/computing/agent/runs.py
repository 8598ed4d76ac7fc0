"""A run's folder, as the agent sees it: written before its hold starts, read back after either has died."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec
from msgspec import Struct

from dure.computing.agent import processes
from dure.model.chip import Chip
from dure.model.errors import DureError
from dure.model.wire import RunSpec
from dure.model.workload import Exit

HOLD = Path(__file__).with_name("hold.py")
GRACE_S = 5.0
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_BOOKKEEPING = (
    *("spec.json", ".spec", "status.json", ".status", "lease", ".stop", "stop", "ready", "engine.json"),
    "hold.lock",
)
_HOLD_ENV = {"LANG": "C.UTF-8"}
_MOST_LOG_BYTES = 1 << 20


class Process(Struct, frozen=True):
    """What the hold executes, made by the agent. `engine` is the content of a file only its owner may
    read, whose path is appended to `argv`; `probe` answers 200 at `url` once the engine is ready."""

    argv: tuple[str, ...]
    env: dict[str, str]
    url: str | None = None
    probe: str = ""
    engine: bytes = b""


class Written(Struct, frozen=True):
    """spec.json: the first six fields are the hold's. `boot` names the boot of the machine it was written in."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    slices: tuple[tuple[str, int, str], ...]
    cpus: tuple[int, ...]
    grace_s: float
    spec: RunSpec
    boot: str
    url: str | None = None
    probe: str = ""


class HoldStatus(Struct, frozen=True):
    """status.json, written by the hold."""

    hold_pid: int
    hold_start: int
    pid: int | None
    phase: Literal["starting", "running", "ended"]
    exit: Exit | None
    cpu_ns: int


class StopOrder(Struct, frozen=True):
    reason: str
    grace_s: float


def home_id(home: Path) -> str:
    """The random id that marks the processes of this home's runs; made on first use."""
    path = home / "home.id"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(16))
    except FileExistsError:
        pass
    text = path.read_text(encoding="ascii", errors="replace")
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise DureError(f"{path} is damaged", "it must hold 32 hexadecimal digits", "Stop all runs and remove it")
    return text


def cpus_of(spec: RunSpec, chips: Mapping[str, Chip]) -> tuple[int, ...]:
    """Operating system's numbers of the cores granted; empty without a `cpu` slice."""
    return tuple(sorted({chips[piece.chip].index for piece in spec.slices if chips[piece.chip].kind == "cpu"}))


class RunFolder:
    """HOME/runs/RUN. Every method blocks on the disk. Raises DureError for a run id that is none."""

    def __init__(self, home: Path, run: str) -> None:
        if not _RUN_ID.fullmatch(run):
            raise DureError(f"{run[:80]!r} is not the id of a run", "1 to 64 of a-z, 0-9, dot and dash")
        self.home, self.run = home, run
        self.path = home / "runs" / run

    def ran(self) -> bool:
        """Something of this run has been here, forgotten or not: it must not start again."""
        return (self.path / "out.log").exists() or (self.path / "spec.json").exists()

    def environment(self, spec: RunSpec, cpus: Sequence[int], home: str, path: str) -> dict[str, str]:
        """What every run gets; `home` is the home's id, `path` its PATH."""
        work = str(self.path / "work")
        return {
            "PATH": path,
            "HOME": work,
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.path / "tmp"),
            "OMP_NUM_THREADS": str(max(1, len(cpus))),
            "DURE_RUN": self.run,
            "DURE_HOME_ID": home,
            "DURE_PROJECT": spec.project,
            "DURE_CHIPS": ",".join(piece.chip for piece in spec.slices),
        }

    def write(self, spec: RunSpec, process: Process, cpus: tuple[int, ...], deadline_ns: int) -> None:
        """Everything the hold reads; spec.json last, and whole. Raises OSError."""
        for folder in ("work", "tmp"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        (self.path / "lease").write_text(f"{deadline_ns:020d}", encoding="ascii")
        argv = process.argv
        if process.engine:
            config = self.path / "engine.json"
            with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(process.engine)
            argv = (*argv, str(config))
        locks = self.home / "locks"
        written = Written(
            argv,
            process.env,
            str(self.path / "work"),
            tuple((piece.chip, piece.milli, str(locks / quote(piece.chip, safe=":"))) for piece in spec.slices),
            cpus,
            GRACE_S,
            spec,
            boot_id(),
            process.url,
            process.probe,
        )
        (self.path / ".spec").write_bytes(msgspec.json.encode(written))
        (self.path / ".spec").rename(self.path / "spec.json")

    def spawn(self) -> int:
        """Start the hold, in a session of its own; its pid. It does nothing if this run has or had one."""
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-X", "utf8", str(HOLD), str(self.path)],
            _HOLD_ENV,
            file_actions=null,
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP],
        )

    def written(self) -> Written | None:
        """spec.json; None: not there, or not what we wrote."""
        try:
            return msgspec.json.decode((self.path / "spec.json").read_bytes(), type=Written)
        except (OSError, msgspec.MsgspecError):
            return None

    def status(self) -> HoldStatus | None:
        """status.json; None: the hold has not written it (yet)."""
        try:
            return msgspec.json.decode((self.path / "status.json").read_bytes(), type=HoldStatus)
        except (OSError, msgspec.MsgspecError):
            return None

    def is_held(self) -> bool:
        """A hold lives here and has come as far as its lock."""
        try:
            with open(self.path / "hold.lock", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False

    def renew(self, deadline_ns: int) -> None:
        """Write the lease in place: it asks a full disk for nothing. Raises OSError."""
        fd = os.open(self.path / "lease", os.O_WRONLY)
        try:
            os.pwrite(fd, b"%020d" % deadline_ns, 0)
        finally:
            os.close(fd)

    def ask_stop(self, reason: str, grace_s: float, hold: tuple[int, int]) -> None:
        """Leave the order, then wake the hold (pid, start time): TERM to the run, after `grace_s` KILL."""
        try:
            (self.path / ".stop").write_bytes(msgspec.json.encode(StopOrder(reason, grace_s)))
            (self.path / ".stop").rename(self.path / "stop")
        except OSError:
            pass  # a full disk: the hold stops it all the same, with its own grace
        processes.terminate(*hold)

    def mark_ready(self) -> None:
        (self.path / "ready").touch()

    def is_ready(self) -> bool:
        """The replica has answered once, so an agent that takes over need not ask again."""
        return (self.path / "ready").exists()

    def forget(self) -> None:
        """Drop the bookkeeping; out.log and work/ stay. A free lock goes with the next run on its chip."""
        for name in _BOOKKEEPING:
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tmp", ignore_errors=True)

    def read_log(self, offset: int, limit: int) -> bytes | None:
        """At most `limit` bytes (1 MiB) of the output from `offset`; None: no such run here."""
        try:
            fd = os.open(self.path / "out.log", os.O_RDONLY)
        except OSError:
            return b"" if self.path.is_dir() else None
        try:
            return os.pread(fd, max(0, min(limit, _MOST_LOG_BYTES)), min(max(0, offset), 2**62))
        finally:
            os.close(fd)


def folders(home: Path) -> list[RunFolder]:
    """Every run that has not been forgotten."""
    found = sorted((home / "runs").glob("*/spec.json"))
    return [RunFolder(home, path.parent.name) for path in found if _RUN_ID.fullmatch(path.parent.name)]


def boot_id() -> str:
    """The kernel's name of this boot: pids, start times and leases of another mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def deadline_ns(seconds: float) -> int:
    """`seconds` from now on the clock of leases, which runs on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + round(seconds * 1e9)
