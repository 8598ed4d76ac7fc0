"""The gateway's journal: one line an ended answer, on disk before the answer's end is sent.

A file's name with its byte offsets is its identity in control's log, so a name is never used for other bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from dure.model.errors import DureError
from dure.model.units import NS_PER_MINUTE
from dure.model.usage import TokenRow

ROTATE_BYTES = 64 << 20
_SLICE = 16 << 10
log = logging.getLogger(__name__)

Outcome = Literal["ok", "cancelled", "failed"]


class Line(Struct, frozen=True):
    """One ended answer. `tokens_in` None: the engine did not say before the end."""

    at_ns: int
    key: str
    project: str
    model: str
    run: str
    tokens_in: int | None
    tokens_out: int
    outcome: Outcome


Sums = dict[tuple[str, str, str, str, int], list[int]]
_line = msgspec.json.Decoder(Line)
_encoder = msgspec.json.Encoder()


def fold_into(sums: Sums, data: bytes) -> None:
    """Add whole journal lines to `sums`: answers, in, out, unknown in, cancelled, failed.

    A line that is no Line (the file was edited) is left out and logged.
    """
    for line in _lines(data):
        at = (line.key, line.project, line.model, line.run, line.at_ns // NS_PER_MINUTE)
        if (row := sums.get(at)) is None:
            row = sums[at] = [0, 0, 0, 0, 0, 0]
        row[0] += 1
        if line.tokens_in is None:
            row[3] += 1
        else:
            row[1] += line.tokens_in
        row[2] += line.tokens_out
        if line.outcome != "ok":
            row[4 if line.outcome == "cancelled" else 5] += 1


def _lines(data: bytes) -> Iterable[Line]:
    for text in data.split(b"\n"):
        if text:
            try:
                yield _line.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                log.error("usage journal: left out a damaged line (%s): %r", error, text[:200])


def rows(sums: Sums) -> tuple[TokenRow, ...]:
    """The sums as ledger rows, in order."""
    return tuple(TokenRow(*at, *row) for at, row in sorted(sums.items()))


def fold(data: bytes) -> tuple[TokenRow, ...]:
    """Whole journal lines as one row per (key, project, model, run, minute)."""
    sums: Sums = {}
    fold_into(sums, data)
    return rows(sums)


class JournalFile:
    """One append-only file of whole lines. `start` is its size when this process opened it.

    `recorded` is how far control has it in the log; None: not asked yet. A torn last line (a
    crash while writing) is cut off: its answer's end was never sent. Raises DureError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.recorded: int | None = None
        self._torn = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.size = self.start = self._cut_torn()
        except BlockingIOError:
            os.close(self._fd)
            raise DureError(
                f"Cannot keep usage in {path}", "another gateway has it open", "Stop the other cloud of this home"
            ) from None
        except OSError as error:
            raise DureError(
                f"Cannot keep usage in {path}", str(error), "Make its folder writable and its disk not full"
            ) from None

    def _cut_torn(self) -> int:
        size = at = os.fstat(self._fd).st_size
        while at > 0:
            back = max(0, at - _SLICE)
            newline = os.pread(self._fd, at - back, back).rfind(b"\n")
            if newline >= 0:
                at = back + newline + 1
                break
            at = back
        if at < size:
            os.ftruncate(self._fd, at)
        return at

    def append(self, data: bytes) -> bool:
        """Write whole lines, all or nothing; False: the disk did not take them."""
        with contextlib.suppress(OSError):
            if self._torn:
                os.ftruncate(self._fd, self.size)
            self._torn = True
            wrote = os.write(self._fd, data)
            if wrote == len(data):
                self._torn = False
                self.size += wrote
                return True
            os.ftruncate(self._fd, self.size)
            self._torn = False
        return False

    def read(self, offset: int, size: int = _SLICE) -> bytes:
        """Whole lines from `offset`, about `size` bytes; empty at the end."""
        while True:
            data = os.pread(self._fd, min(size, self.size - offset), offset)
            end = data.rfind(b"\n") + 1
            if end or offset + len(data) >= self.size:
                return data[:end]
            size *= 2

    def close(self) -> None:
        os.close(self._fd)


class Journal:
    """The journal files of one gateway in HOME/usage: the one written now and older ones not yet recorded.

    Lines the disk did not take wait in memory; `broken` is true while there are any.
    """

    def __init__(self, folder: Path, gateway: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._gateway = folder, gateway
        self._pending: list[bytes] = []
        pattern = re.compile(re.escape(gateway) + r"(?:\.([0-9]{1,12}))?\.journal")
        found = sorted((int(m[1] or 0), m[0]) for p in folder.iterdir() if (m := pattern.fullmatch(p.name)))
        files = [JournalFile(folder / name) for _, name in found]
        self._number = found[-1][0] if found else 0
        self.old = files[:-1]
        self.current = files[-1] if files else JournalFile(folder / f"{gateway}.journal")

    @property
    def broken(self) -> bool:
        return bool(self._pending)

    @property
    def settled(self) -> bool:
        """Everything written is in control's log."""
        return not self._pending and not self.old and self.current.recorded == self.current.size

    def append(self, line: Line) -> None:
        """Keep one ended answer. Blocks a few µs: the write goes to the page cache."""
        data = _encoder.encode(line) + b"\n"
        if self._pending or not self.current.append(data):
            if not self._pending:
                log.error("usage journal %s cannot be written: new requests are refused", self.current.path)
            self._pending.append(data)
        elif self.current.size >= ROTATE_BYTES:
            self.rotate()

    def mend(self) -> bool:
        """Try again what the disk did not take; True: nothing waits any more."""
        if self._pending and self.current.append(b"".join(self._pending)):
            self._pending.clear()
            log.warning("usage journal %s is written again", self.current.path)
        return not self._pending

    def rotate(self) -> None:
        """Write to a new file from now on; the old one goes when it is recorded. A full disk: later."""
        with contextlib.suppress(DureError):
            new = JournalFile(self._folder / f"{self._gateway}.{self._number + 1:05d}.journal")
            self._number += 1
            self.old.append(self.current)
            self.current = new

    def resumed(self, file: JournalFile, upto: int) -> None:
        """Control answered how far `file` is in the log.

        When it knows more than there was, the machine lost the file's last bytes or the file: what this
        process wrote there has offsets that are spent, so it moves to a new name. Raises DureError.
        """
        if upto <= file.start or file.recorded is not None:
            file.recorded = min(upto, file.size)
            return
        log.error("usage journal %s: control knows %d bytes of %d; goes on in a new file", file.name, upto, file.start)
        if file is self.current:
            number = self._number
            self.rotate()
            fresh = file.read(file.start, file.size)
            if number == self._number or (fresh and not self.current.append(fresh)):
                raise DureError(f"Cannot keep usage in {self._folder}", "the disk takes no new file", "Free some space")
        file.recorded = file.size

    def drop_recorded(self) -> None:
        """Delete old files that control has whole."""
        for file in [file for file in self.old if file.recorded is not None and file.recorded >= file.size]:
            file.path.unlink(missing_ok=True)
            file.close()
            self.old.remove(file)
