"""The process that fetches one model: `python -m dure.app fetch --home HOME MODEL`, JSON lines on stdout.

`{"done": N, "total": M}` in bytes while it goes on, at most about 5 a second; at the end `{"path": "..."}`,
or `{"error": {"what", "why", "do"}}` and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from dure.app.settings import environment
from dure.computing.artifacts import HUB, ensure
from dure.computing.catalogue import load
from dure.model.errors import DureError

_EVERY_S = 0.2
_TOKEN_BYTES = 4096
_PIP_NEEDS = re.compile(
    r"PATH|HOME|USER|LANG|LC_ALL|XDG_(CONFIG_HOME|CONFIG_DIRS|CACHE_HOME)|NETRC|PIP_.*"
    r"|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|(?i:(http|https|all|no)_proxy)"
)


class Fetching(Struct, frozen=True):
    done: int
    total: int


class Fetched(Struct, frozen=True):
    path: str


class Problem(Struct, frozen=True):
    what: str
    why: str
    do: str


class Failed(Struct, frozen=True):
    error: Problem


Said = Fetching | Fetched | Failed


def main(argv: Sequence[str]) -> int:
    """Fetch as `argv` says; exit code 0, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(prog="dure.app fetch", description="Fetch one model into the home's store.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("model", metavar="MODEL")
    told = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _say(Fetched(str(_fetch(told.home, told.model, environment(), _reporter(time.monotonic)))))
        return 0
    except DureError as error:
        _say(Failed(Problem(error.what, error.why, error.do)))
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _fetch(home: Path, name: str, environ: Mapping[str, str], progress: Callable[[int, int], None]) -> Path:
    models = load(home / "models.toml")
    if name not in models:
        raise DureError(f"there is no model {name[:64]!r}", f"known: {', '.join(sorted(models))}", "See docs/models.md")
    return ensure(
        models[name],
        home / "models",
        progress,
        environ.get("HF_ENDPOINT") or HUB,
        _token(home / "hf.token", environ),
        {key: value for key, value in environ.items() if _PIP_NEEDS.fullmatch(key)},
    )


def _token(path: Path, environ: Mapping[str, str]) -> str | None:
    """The hub's token: in `path`, else in HF_TOKEN, else None. Never shown, not even in an error."""
    where, mode = str(path), 0o600
    try:
        with path.open("rb") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(_TOKEN_BYTES)
    except FileNotFoundError:
        where, text = "HF_TOKEN", environ.get("HF_TOKEN", "").encode("utf-8", "surrogateescape")
        if not text:
            return None
    except OSError as error:
        raise DureError(f"cannot read {path}", error.strerror or "", "Make it readable for the user of Dure") from None
    if mode & 0o077:
        raise DureError(f"{path} can be read by others", f"its mode is {mode & 0o777:04o}", f"Run chmod 600 {path}")
    if not re.fullmatch(rb"[\x21-\x7e]+", text.strip()):
        raise DureError(
            f"{where} holds no token", "it must be one line of plain ASCII", "Write the hub's token into it"
        )
    return text.strip().decode("ascii")


def _reporter(clock: Callable[[], float]) -> Callable[[int, int], None]:
    """Says progress at most each _EVERY_S; the end and the first always."""
    last = -1e9

    def report(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if done == total or now - last >= _EVERY_S:
            last = now
            _say(Fetching(done, total))

    return report


def _say(what: Said) -> None:
    try:
        print(msgspec.json.encode(what).decode(), flush=True)
    except BrokenPipeError:  # nobody waits for the file any more
        sys.stdout = None  # or the interpreter fails once more while it ends
        raise SystemExit(1) from None


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # through the finally blocks: pip must not outlive us


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
