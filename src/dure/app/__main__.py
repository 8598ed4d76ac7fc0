"""`python -m dure.app VERB`: one verb a process."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from dure.model.errors import DureError, LogUnwritable

UNUSABLE = 78
"""Exit code of a process that would fail the same way again until somebody acts."""
LAST_WORDS = "It cannot go on:"
"""The line before its reasons."""
_PR_SET_PDEATHSIG = 1


def _die_with_parent(parent: int) -> None:
    """End when `dure up` does, however it ends; runs live on under their holds."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("dure up is gone")


def _serve(argv: Sequence[str], verb: str) -> int:
    parser = argparse.ArgumentParser(prog=f"dure.app {verb}", description="Started by `dure up`.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True, help="listening socket, inherited")
    parser.add_argument("--control", type=int, required=True, help="control's port")
    parser.add_argument("--agent", type=int, required=True, help="the agent's metrics port")
    parser.add_argument("--node", required=True)
    parser.add_argument("--fleet", type=Path)
    parser.add_argument("--lock", type=int, required=True, help="locked while a process of the home lives, inherited")
    parser.add_argument("--again", action="store_true", help="it was there a moment ago, and died")
    told = parser.parse_args(argv)
    os.set_inheritable(told.lock, False)  # runs outlive us, and must not hold it
    _die_with_parent(told.parent)
    run = import_module(f"dure.app.{verb}").run
    if verb == "control":
        run(told.home, told.fd, told.again)
    elif verb == "gateway":
        run(told.home, told.fd, told.control, told.agent)
    else:
        run(told.home, told.fd, told.control, told.fleet, told.node, None)
    return 0


def main(argv: Sequence[str]) -> int:
    verbs = {"up", "control", "gateway", "agent", "fetch"}
    verb, rest = (argv[0], argv[1:]) if argv else ("", [])
    if verb not in verbs:
        print(f"usage: python -m dure.app {{{','.join(sorted(verbs))}}} …", file=sys.stderr)
        return 2
    try:
        if verb in ("control", "gateway", "agent"):
            return _serve(rest, verb)
        result: int = import_module(f"dure.app.{verb}").main(rest)
        return result
    except DureError as error:
        child = verb in ("control", "gateway", "agent")
        if child:
            print(LAST_WORDS, file=sys.stderr)
        for line in filter(None, (error.what, error.why, error.do)):
            print(line, file=sys.stderr)
        return UNUSABLE if child and not isinstance(error, LogUnwritable) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
