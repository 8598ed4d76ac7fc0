"""A process that `dure up` starts: its options, its tie to its parent, its last words."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from dure.model.errors import DureError, LogUnwritable

UNUSABLE = 78
"""Exit code of a process that would fail the same way again until somebody acts."""
LAST_WORDS = "It cannot go on:"
"""The line before its reasons."""
_PR_SET_PDEATHSIG = 1


def told() -> argparse.Namespace:
    """The options that `dure up` gives to each of its children."""
    parser = argparse.ArgumentParser(description="Started by `dure up`.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True, help="listening socket, inherited")
    parser.add_argument("--control", type=int, required=True, help="control's port")
    parser.add_argument("--agent", type=int, required=True, help="the agent's metrics port")
    parser.add_argument("--node", required=True)
    parser.add_argument("--fleet", type=Path)
    parser.add_argument("--lock", type=int, required=True, help="locked while a process of the home lives, inherited")
    parser.add_argument("--again", action="store_true", help="it was there a moment ago, and died")
    return parser.parse_args()


def serve(run: Callable[[argparse.Namespace], None]) -> int:
    """Run until the process is told to end, or its parent is gone; its exit code."""
    options = told()
    os.set_inheritable(options.lock, False)  # runs outlive us, and must not hold it
    _die_with_parent(options.parent)
    try:
        run(options)
    except DureError as error:
        print(LAST_WORDS, file=sys.stderr)
        explain(error)
        return 1 if isinstance(error, LogUnwritable) else UNUSABLE
    return 0


def explain(error: DureError) -> None:
    """What, why and what to do, a line each, on stderr."""
    for line in filter(None, (error.what, error.why, error.do)):
        print(line, file=sys.stderr)


def _die_with_parent(parent: int) -> None:
    """End when `dure up` does, however it ends; runs live on under their holds."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("dure up is gone")
