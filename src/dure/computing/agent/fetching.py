"""A model's file by way of a child process, so that no download or digest blocks the agent."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from dure.model.errors import DureError

_LINE_BYTES = 1 << 20


class _Problem(Struct, frozen=True):
    what: str
    why: str = ""
    do: str = ""


class _Line(Struct, frozen=True):
    """One line of the child: progress in bytes, the path at the end, or why not."""

    done: int = 0
    total: int = 0
    path: str | None = None
    error: _Problem | None = None


async def fetch(home: Path, model: str, report: Callable[[int, int], None]) -> Path:
    """The file of `model` in the store of `home`; calls `report(bytes done, bytes in all)` meanwhile.

    Raises DureError with the child's reasons. Cancelled, it ends the child first.
    """
    argv = [sys.executable, "-m", "dure.app.fetch", "--home", str(home), model]
    # The child gets the agent's whole environment: pip and the hub are configured by the user's variables.
    child = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, limit=_LINE_BYTES)
    assert child.stdout is not None
    path: str | None = None
    try:
        async for text in child.stdout:
            try:
                line = msgspec.json.decode(text, type=_Line)
            except msgspec.MsgspecError:
                continue
            if line.error is not None:
                raise DureError(line.error.what, line.error.why, line.error.do)
            path = line.path
            if path is None:
                report(line.done, line.total)
    finally:
        await _ended(child)
    if path is None:
        raise DureError(f"model {model} was not fetched", f"the fetching process ended with {child.returncode}")
    return Path(path)


async def _ended(child: Process) -> None:
    """Ask it to end, insist after 5 s."""
    try:
        async with asyncio.timeout(5.0):
            if child.stdout is not None and not child.stdout.at_eof():
                child.terminate()
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
    except ProcessLookupError:
        await child.wait()
