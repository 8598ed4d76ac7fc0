"""The children of `dure up`: spawned, watched, restarted, ended."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dure.app.child import LAST_WORDS, UNUSABLE
from dure.model.errors import DureError

RESTART_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Wait before each further restart; a process that lived a minute starts again from the first."""
DEATHS = 4
"""Ends in a row after which a process is said not to come up."""


class Child:
    """One process, kept alive. Its thread is the parent the kernel ties it to, so it outlives no `up`."""

    def __init__(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], fds: Sequence[int], log: Path
    ) -> None:
        self.name, self.pid, self.log = name, 0, log
        self.deaths = 0
        """In a row, none after a minute's life."""
        self.unusable: DureError | None = None
        """Why it gave up by itself when it last did."""
        self._argv, self._environment, self._fds = argv, environment, fds
        self._process: subprocess.Popen[bytes] | None = None
        self._spawning = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._changed: Callable[[], None] = lambda: None

    def start(self, changed: Callable[[], None]) -> None:
        """Spawn, and call `changed`, from a thread, whenever `pid` is another."""
        self._changed = changed
        self._thread.start()

    def check(self) -> None:
        """Raises DureError when the process does not come up."""
        if self.unusable is not None:
            raise self.unusable
        if self.deaths >= DEATHS:
            raise self.failed(f"The {self.name} process does not come up", f"it ended {self.deaths} times")

    def failed(self, what: str, why: str) -> DureError:
        """An error with the last the process said."""
        said = "".join(f"\n    {line}" for line in _lines(self.log, 0)[-3:])
        return DureError(what, f"{why}; last in {self.log}:{said or ' nothing'}", "See that file")

    def _keep(self) -> None:
        again: list[str] = []
        while not self._ending.is_set():
            began = time.monotonic()
            at = self.log.stat().st_size if self.log.exists() else 0
            try:
                code = self._live(again)
            except OSError as error:  # no room for its log, no memory for a process
                self.unusable, code = DureError(f"The {self.name} process cannot be started", str(error)), 1
            self.deaths = 1 if time.monotonic() - began > 60 else self.deaths + 1
            if code == UNUSABLE:
                self.unusable = DureError(*_last_words(self.log, at, self.name))
            again = ["--again"] if self.unusable is None else []
            wait_s = RESTART_S[min(self.deaths, len(RESTART_S)) - 1] if self.unusable is None else RESTART_S[-1]
            self._ending.wait(wait_s)

    def _live(self, again: list[str]) -> int:
        """From spawn to end; the exit code."""
        with self._spawning, self.log.open("ab") as out:
            if self._ending.is_set():
                return 0
            self._process = subprocess.Popen(
                [*self._argv, *again],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment,
                pass_fds=self._fds,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._changed()
        return self._process.wait()

    def end(self, with_signal: int, within_s: float) -> None:
        """Signal, wait, and kill what is left. It is not started again."""
        self._ending.set()
        with self._spawning:
            process = self._process
        if process is not None:
            process.send_signal(with_signal)
            self._thread.join(within_s)
            if self._thread.is_alive():
                process.send_signal(signal.SIGKILL)
                self._thread.join(5.0)


def _lines(log: Path, start: int) -> list[str]:
    """The last lines of a log, of those from byte `start` on."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 65_536))
            return [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return []


def _last_words(log: Path, start: int, name: str) -> tuple[str, str, str]:
    """What a process said before it gave up: its what, why and do."""
    lines = _lines(log, start)
    said = lines[len(lines) - lines[::-1].index(LAST_WORDS) :] if LAST_WORDS in lines else lines[-1:]
    what, why, do = ([*said, "", "", ""])[:3]
    return what or f"{name} gave up without a word", why, do
