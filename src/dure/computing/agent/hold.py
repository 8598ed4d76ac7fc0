"""The parent of one run: `python -I -S hold.py RUN_DIR`. Standard library only; imported by nothing.

It takes a lock for each chip share, starts the run's process in a session of its own, and outlives
the agent. It ends the run when it is told to (SIGTERM), or by itself once the lease has run out,
and then leaves none of the run's processes behind. What it knows it keeps in RUN_DIR/status.json.

Files of RUN_DIR: `spec.json` {argv, env, cwd, slices [[chip, milli, lock folder]], cpus, grace_s};
`lease` a CLOCK_BOOTTIME deadline in ns; `stop` {reason, grace_s}, written before the SIGTERM;
`out.log` the run's output; `status.json`; `hold.lock`, held for as long as this process lives.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WHOLE_CHIP_MILLI = 1000
LONGEST_WAIT_S = 5.0  # a suspended machine stops the timer but not the lease's clock
KILL_AGAIN_S = 0.05
WOKEN_BY = {signal.SIGTERM, signal.SIGCHLD}
BLOCKED = WOKEN_BY | {signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2}


class Refused(Exception):
    """The run cannot start; the message says why."""


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from `state` (index 0) on; `ppid` is 1, `starttime` 19."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def descendants(root: int) -> list[int]:
    """Every process below `root`, by the kernel's table now (a dead leader may still have living threads)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = stat_fields(int(name))
            except (OSError, ValueError):
                continue
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found[1:]


def take_share(run: str, chip: str, milli: int, folder: str) -> int:
    """A flocked file in `folder` that says `milli RUN`: the share is held while any copy of the fd is open.

    Files there whose lock nobody holds are left over from dead runs and go. Raises Refused when the
    shares held and this one exceed the chip.
    """
    os.makedirs(folder, exist_ok=True)
    gate = os.open(f"{folder}/.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        held: dict[str, int] = {}
        for name in os.listdir(folder):
            if name.startswith("."):
                continue
            with open(f"{folder}/{name}", "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(f"{folder}/{name}")
                except BlockingIOError:
                    said = file.read(64).split()
                    held[name] = int(said[0]) if said and said[0].isdigit() else WHOLE_CHIP_MILLI
        if run in held or sum(held.values()) + milli > WHOLE_CHIP_MILLI:
            by = ", ".join(f"{name} {share}" for name, share in sorted(held.items()))
            raise Refused(f"{chip}: {milli} of {WHOLE_CHIP_MILLI} milli asked, held: {by}")
        fd = os.open(f"{folder}/{run}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, f"{milli} {run}\n".encode())
        return fd
    finally:
        os.close(gate)


class Hold:
    """One run, from its locks to its last process. `folder` is its RUN_DIR."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.run = os.path.basename(folder)
        self.libc = ctypes.CDLL(None, use_errno=True)
        with open(f"{folder}/spec.json", encoding="utf-8") as file:
            self.spec = json.load(file)
        self.child = 0
        self.wait_status: int | None = None
        self.reason = ""  # why the run is being ended; "" while it lives
        self.kill_at_s = 0.0
        self.stop_asked = False
        self.saved = False
        self.shares: list[int] = []  # fds of the locks
        self.status: dict[str, object] = {
            "hold_pid": os.getpid(),
            "hold_start": int(stat_fields(os.getpid())[19]),
            "pid": None,
            "phase": "starting",
            "exit": None,
            "cpu_ns": 0,
        }

    def save(self) -> None:
        """Replace status.json as one; on a full disk `saved` stays False and the loop tries again.

        Only the end must outlive the machine: what else a power cut takes, it takes with the run.
        """
        self.saved = False
        try:
            with open(f"{self.folder}/.status", "w", encoding="utf-8") as file:
                json.dump(self.status, file)
                file.flush()
                if self.status["exit"] is not None:
                    os.fsync(file.fileno())
            os.rename(f"{self.folder}/.status", f"{self.folder}/status.json")
        except FileNotFoundError:
            self.saved = True  # the folder is gone: nobody is left to tell
        except OSError:
            return
        else:
            self.saved = True

    def live(self) -> None:
        """The whole life of the run."""
        self.save()
        if not self.saved:
            raise OSError("status.json cannot be written, so nothing was started")
        try:
            stop = self.stop_order()
            if stop is not None:
                self.reason = stop[0]
                self.end()
                return
            for chip, milli, folder in self.spec["slices"]:
                self.shares.append(take_share(self.run, chip, milli, folder))
            self.start()
        except (Refused, OSError) as error:
            self.reason = "failed"
            self.end(str(error))
            return
        try:
            self.watch()
        except BaseException:  # whatever went wrong here, nothing of the run may live on unwatched
            self.signal_all(signal.SIGKILL)
            raise
        self.end()

    def start(self) -> None:
        """Fork and exec; raises Refused when the command cannot be executed."""
        for fd in self.shares:
            os.set_inheritable(fd, True)
        told, tell = os.pipe()
        parent = os.getpid()
        self.child = os.fork()
        if self.child == 0:
            try:
                self.become(parent)
            except (OSError, ValueError) as error:
                os.write(tell, str(error).encode(errors="replace")[:2000])
            finally:
                os._exit(127)
        os.close(tell)
        problem = os.read(told, 4096)
        os.close(told)
        if problem:
            os.waitpid(self.child, 0)
            raise Refused(problem.decode(errors="replace"))
        self.status.update(pid=self.child, phase="running")
        self.save()

    def become(self, parent: int) -> None:
        """In the child: turn into the run's process. Open by now: 0, 1, 2, the shares, a pipe that closes on exec."""
        spec = self.spec
        os.setsid()
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)
        if spec["cpus"]:
            os.sched_setaffinity(0, spec["cpus"])
        os.chdir(spec["cwd"])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        try:
            os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
        except FileNotFoundError:
            raise ValueError(f"command not found: {spec['argv'][0][:200]}") from None
        except PermissionError:
            raise ValueError(f"command not executable: {spec['argv'][0][:200]}") from None
        except OSError as error:
            raise ValueError(f"{spec['argv'][0][:200]}: {error.strerror}") from None

    def watch(self) -> None:
        """Until no process of the run is left."""
        while self.reap():
            now_s, wait_s = boot_s(), LONGEST_WAIT_S
            if not self.reason:
                left_s = self.lease_left(now_s)
                if self.wait_status is not None:
                    self.begin_end("exited", float(self.spec["grace_s"]))
                elif self.stop_asked:
                    self.begin_end(*(self.stop_order() or ("stopped", float(self.spec["grace_s"]))))
                elif left_s <= 0:
                    self.begin_end("lease", float(self.spec["grace_s"]))
                else:
                    wait_s = min(wait_s, left_s)
            if self.reason:
                if boot_s() >= self.kill_at_s:
                    self.signal_all(signal.SIGKILL)
                    wait_s = KILL_AGAIN_S
                else:
                    wait_s = min(wait_s, self.kill_at_s - boot_s())
            if not self.saved:
                self.save()
                wait_s = min(wait_s, 1.0)
            woken = signal.sigtimedwait(WOKEN_BY, max(wait_s, 0.001))
            if woken is not None and woken.si_signo == signal.SIGTERM:
                self.stop_asked = True

    def reap(self) -> bool:
        """Collect the dead, strays included; False: no process of the run is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.child:
                self.wait_status = status

    def begin_end(self, reason: str, grace_s: float) -> None:
        self.reason = reason
        self.kill_at_s = boot_s() + grace_s
        self.signal_all(signal.SIGTERM)
        self.signal_all(signal.SIGCONT)  # a stopped process takes its TERM only when it goes on

    def signal_all(self, number: signal.Signals) -> None:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                continue

    def lease_left(self, now_s: float) -> float:
        """Seconds; a lease that cannot be read has run out."""
        try:
            with open(f"{self.folder}/lease", encoding="ascii") as file:
                return int(file.read()) / 1e9 - now_s
        except (OSError, ValueError):
            return 0.0

    def stop_order(self) -> tuple[str, float] | None:
        try:
            with open(f"{self.folder}/stop", encoding="utf-8") as file:
                order = json.load(file)
            return str(order["reason"]), float(order["grace_s"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def end(self, detail: str = "") -> None:
        """Give the shares back, then record the end; on a full disk until it is recorded."""
        for fd in self.shares:  # its file stays, free, until the next run on that chip clears it away
            os.close(fd)
        code: int | None = None
        signal_number: int | None = None
        if self.wait_status is not None and os.WIFSIGNALED(self.wait_status):
            signal_number = os.WTERMSIG(self.wait_status)
        elif self.wait_status is not None:
            code = os.WEXITSTATUS(self.wait_status)
        reason = self.reason or "exited"
        if reason == "exited" and signal_number:
            reason = "signalled"
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.status.update(
            phase="ended",
            exit={"reason": reason, "code": code, "signal": signal_number, "detail": detail},
            cpu_ns=round((used.ru_utime + used.ru_stime) * 1e9),
        )
        self.save()
        while not self.saved:
            signal.sigtimedwait(WOKEN_BY, 1.0)
            self.save()


def main(folder: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    os.closerange(3, 65_536)
    own = os.open(f"{folder}/hold.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # this run has its hold already
    if os.path.exists(f"{folder}/status.json"):
        return 0  # it had one: a run never starts twice
    out = os.open(f"{folder}/out.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(out, null + 1)
    hold = Hold(folder)
    hold.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    hold.live()
    return 0


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
