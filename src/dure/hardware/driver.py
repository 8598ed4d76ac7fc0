"""The port between Dure and a kind of chip, and the little of its machine a driver may see."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from dure.model.chip import Chip, Reading
from dure.model.errors import DureError

_TOOL_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class LibraryAbsent(DureError):
    """The vendor's library or tool is not installed here: the driver cannot know whether a chip is there."""


class Completed(Struct, frozen=True):
    """A vendor's tool that ended: its exit code (negative: the signal) and what it wrote."""

    code: int
    stdout: str
    stderr: str


def run_tool(argv: Sequence[str], timeout_s: float) -> Completed:
    """Run a vendor's tool in a session of its own, with a fixed environment and no input.

    Raises LibraryAbsent when it is not installed, DureError when it cannot start or does not end in `timeout_s` seconds
    (it and its children are killed; one that the kernel does not let die is left behind).
    """
    try:
        tool = subprocess.Popen(
            list(argv),
            env=_TOOL_ENV,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise LibraryAbsent(f"{argv[0]} is not installed", do="Install the vendor's driver package") from error
    except (OSError, ValueError) as error:
        raise DureError(f"{argv[0]} cannot be started", str(error)) from error
    with tool.stdout, tool.stderr:  # type: ignore[union-attr]  # both are PIPE
        try:
            out, err = tool.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            os.killpg(tool.pid, signal.SIGKILL)
            try:
                tool.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                tool.returncode = -signal.SIGKILL  # hangs in the kernel: nobody can wait for it
            raise DureError(
                f"{argv[0]} did not answer within {timeout_s:g} s", "the driver or the chip hangs"
            ) from error
    return Completed(tool.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def _affinity() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0))


class Host(Struct, frozen=True):
    """What a driver may see of its machine: files under `root`, tools through `run`, and which CPUs are ours.

    `run(argv, timeout_s)` behaves as `run_tool`. Tests give a tree of files and a canned `run`.
    """

    root: Path = Path("/")
    run: Callable[[Sequence[str], float], Completed] = run_tool
    allowed_cpus: Callable[[], frozenset[int]] = _affinity

    def read(self, path: str) -> str | None:
        """Text of the file at `path` below the root; None when it is not there or gives nothing to us."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


class Driver(Protocol):
    """One kind of chip on one host. Synchronous; it may hold state between reads; one thread calls it at a time.

    No chip: `discover` returns []. Vendor's library or tool missing: LibraryAbsent. Anything else it raises
    means that chips are there and fail. `dure.hardware.conformance` checks these rules.
    """

    name: str
    """The name of its file in `drivers/`."""

    def discover(self, host: Host, node: str) -> list[Chip]:
        """Every chip of this kind, ids `NODE:NAME`, in a stable order."""

    def read(self, host: Host, chips: Sequence[Chip], now_ns: int) -> list[Reading]:
        """Readings at `now_ns` (UTC) in the order of `chips`; a chip that does not answer is left out."""

    def limit_power(self, host: Host, chip: Chip, watts: float) -> None:
        """Cap the chip's power in W. Raises DureError where the chip cannot."""

    def partition(self, host: Host, chip: Chip, parts: int) -> None:
        """Split the chip into `parts` equal ones. Raises DureError where the chip cannot."""


def unsupported(driver: str, act: str) -> DureError:
    """The error of a driver whose chips cannot do `act`."""
    return DureError(f"{driver} chips cannot {act}", f"driver {driver} does not support it")
