"""The children of `dure up`: spawned, watched, restarted, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dure.app.__main__ import UNUSABLE
from dure.model.errors import DureError

RESTART_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Wait before each further restart; a process that lived a minute starts again from the first."""


class Child:
    """One process, kept alive. Its thread is the parent the kernel ties it to, so it outlives no `up`."""

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], fd: int, log: Path) -> None:
        self.name, self.pid = name, 0
        self.unusable: DureError | None = None
        self._argv, self._environment, self._fd, self._log = argv, environment, fd, log
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._changed: Callable[[], None] = lambda: None

    def start(self, changed: Callable[[], None]) -> None:
        """Spawn, and call `changed` whenever `pid` is another."""
        self._changed = changed
        self._thread.start()

    def _keep(self) -> None:
        failures = 0
        while not self._ending.is_set():
            began = time.monotonic()
            at = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("ab") as out:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=self._environment,
                    pass_fds=[self._fd],
                    start_new_session=True,
                )
            self.pid = self._process.pid
            self._changed()
            code = self._process.wait()
            if code == UNUSABLE:
                self.unusable = DureError(*_last_lines(self._log, at, self.name))
                return
            failures = 0 if time.monotonic() - began > 60 else failures + 1
            self._ending.wait(RESTART_S[min(failures, len(RESTART_S) - 1)])

    def end(self, with_signal: int, within_s: float) -> None:
        """Signal, wait, and kill what is left."""
        self._ending.set()
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, with_signal)
            deadline = time.monotonic() + within_s
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._thread.join(5.0)


def _last_lines(log: Path, start: int, name: str) -> tuple[str, str, str]:
    """What a process said before it gave up: its what, why and do."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read(65_536).decode("utf-8", "replace").splitlines() if line.strip()]
    what, why, do = ([*lines[-3:], "", "", ""])[:3]
    return what or f"{name} gave up without a word", why, do
