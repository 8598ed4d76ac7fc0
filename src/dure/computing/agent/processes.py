"""What /proc tells of processes: who is who, who is left over, and how much CPU time a run has used."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_STRAYS_WAIT_S = 5.0


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from `state` on; None: no such process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            return os.read(fd, 4096).rpartition(b")")[2].split() or None
        finally:
            os.close(fd)
    except OSError:
        return None


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def is_alive(pid: int, start: int) -> bool:
    """The process that had this pid and start time (clock ticks since boot) still runs."""
    stat = _stat(pid)
    return stat is not None and stat[0] not in (b"Z", b"X") and int(stat[19]) == start


def open_pidfd(pid: int, start: int) -> int | None:
    """A descriptor of exactly that process, readable once it has ended; None: it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    if is_alive(pid, start):  # asked after opening: the descriptor cannot be another's
        return fd
    os.close(fd)
    return None


def terminate(pid: int, start: int) -> bool:
    """SIGTERM to exactly that process; False: it is gone."""
    fd = open_pidfd(pid, start)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def cpu_ns(holds: Iterable[int]) -> dict[int, int]:
    """CPU time in ns of everything below each hold so far, the dead included; holds that are gone are left out.

    The kernel counts here in clock ticks, so a value may lag behind by a tick a process.
    """
    table: dict[int, tuple[int, int]] = {}
    children: dict[int, list[int]] = {}
    for pid in _pids():
        stat = _stat(pid)
        if stat:
            reaped = int(stat[13]) + int(stat[14])
            table[pid] = (int(stat[11]) + int(stat[12]) + reaped, reaped)
            children.setdefault(int(stat[1]), []).append(pid)
    used: dict[int, int] = {}
    for hold in holds:
        if hold in table:
            below = list(children.get(hold, ()))
            for pid in below:
                below.extend(children.get(pid, ()))
            used[hold] = (table[hold][1] + sum(table[pid][0] for pid in below)) * _TICK_NS
    return used


def strays(home_id: str) -> dict[int, str]:
    """Processes of this home's runs, pid -> run, by the environment they were started with."""
    mark = f"DURE_HOME_ID={home_id}".encode()
    found: dict[int, str] = {}
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environ = file.read().split(b"\0")
        except OSError:
            continue
        if mark in environ:
            runs = [item[9:] for item in environ if item.startswith(b"DURE_RUN=")]
            found[pid] = runs[0].decode(errors="replace") if runs else ""
    return found


def kill_strays(home_id: str, is_ours: Callable[[str], bool]) -> list[int]:
    """Kill every process of this home's runs for whose run `is_ours` is true, until none is left; their pids.

    Blocks up to 5 s for processes the kernel does not let die at once.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + _STRAYS_WAIT_S
    while time.monotonic() < deadline:
        left = [pid for pid, run in strays(home_id).items() if is_ours(run)]
        if not left:
            break
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.01)
    return sorted(killed)
