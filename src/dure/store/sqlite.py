"""The log on disk: one SQLite file in WAL mode, one transaction an append, synced before it returns."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from dure.model.errors import DureError, LogDamaged, LogUnwritable
from dure.model.event import Entry
from dure.store.chain import GENESIS, Row, damaged, opened, seal, unseal
from dure.store.log import check_offset, check_range

BUSY_S = 2.0
"""How long an append waits for another process that is writing to the same file."""

APPLICATION_ID = 0x44757265  # "Dure", in the file's header
FORMAT = 1

SCHEMA = f"""
BEGIN;
CREATE TABLE log (
  offset INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, v INTEGER NOT NULL, subject TEXT, body BLOB NOT NULL,
  hash BLOB NOT NULL
) STRICT;
CREATE INDEX log_subject ON log (subject) WHERE subject IS NOT NULL;
CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), head INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE TABLE snapshot (
  offset INTEGER PRIMARY KEY, row_hash BLOB NOT NULL, digest BLOB NOT NULL, state BLOB NOT NULL
) STRICT;
INSERT INTO meta VALUES (1, 0, x'{GENESIS.hex()}');
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
COMMIT;
"""

ROWS = "SELECT offset, at_ns, v, subject, body, hash FROM log WHERE offset >= ? AND offset < ? ORDER BY offset"
ROWS_ABOUT = (
    "SELECT offset, at_ns, v, body FROM log WHERE subject = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?"
)
KEEP_TWO = "DELETE FROM snapshot WHERE offset <= (SELECT offset FROM snapshot ORDER BY offset DESC LIMIT 1 OFFSET 2)"

SICK = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second: SQLite's message quotes a damaged schema


class SqliteLog:
    """A Log in the file at `path`, made with mode 0600 if there is none.

    Appends and snapshots go through one connection, reads through another, each under a lock.
    """

    def __init__(self, path: Path) -> None:
        """Raises LogUnwritable where no log can be written, LogDamaged where this one is not whole."""
        self._path, self._name = path, str(path)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        _make_if_absent(path)
        self._writer = _connect(path)
        try:
            with _told(path):
                _prove_usable(self._writer, self._name)
                self._head, self._hash = self._whole_head()
            self._reader = _connect(path)
        except BaseException:
            self._writer.close()
            raise

    @property
    def head(self) -> int:
        return self._head

    def append(self, entries: Sequence[Entry]) -> int:
        with self._writing:
            start = self._head
            rows = seal(entries, start, self._hash)
            if not rows:
                return start
            head, digest = start + len(rows), rows[-1][5]
            with self._transaction():
                step = "UPDATE meta SET head = ?, hash = ? WHERE head = ? AND hash = ?"
                if self._writer.execute(step, (head, digest, start, self._hash)).rowcount != 1:
                    raise LogUnwritable(
                        f"{self._name} cannot be appended to",
                        f"another process has appended to it since this one read its head, {start}",
                        "Stop the other Dure on this home, then start this one again",
                    )
                self._writer.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._head, self._hash = head, digest
            return start

    def read(self, start: int, limit: int, about: str | None = None) -> list[tuple[int, Entry]]:
        check_range(start, limit)
        head = self._head
        stop = min(start + limit, head)
        if start >= head or stop == start:
            return []
        with self._reading:
            if about is None:
                return list(self._rows(self._reader, start, stop))
            return self._read_about(about, start, head, limit)

    def save_snapshot(self, offset: int, state: bytes) -> None:
        digest = hashlib.sha256(state).digest()
        with self._writing:
            check_offset(offset, self._head)
            with self._transaction():
                row_hash = _hash_before(self._writer, offset, self._name)
                row = (offset, row_hash, digest, state)
                self._writer.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?)", row)
                self._writer.execute(KEEP_TWO)

    def load_snapshot(self) -> tuple[int, bytes] | None:
        with self._reading, _told(self._path), _one_view(self._reader):
            for (offset,) in self._reader.execute("SELECT offset FROM snapshot ORDER BY offset DESC").fetchall():
                state = self._snapshot(offset)
                if state is not None:
                    return offset, state
        return None

    def verify(self) -> int:
        """Also checks the recorded head, that no snapshot is past it, and SQLite's own pages and indexes."""
        with closing(_connect(self._path)) as connection, _told(self._path), _one_view(connection):
            for _ in self._rows(connection, 0, _recorded_head(connection, self._name)[0]):
                pass
            head, _ = _checked_head(connection, self._name)
            newest = connection.execute("SELECT max(offset) FROM snapshot").fetchone()[0]
            if newest is not None and newest > head:
                raise damaged(self._name, head, f"rows are missing: a snapshot was taken after {newest} of them")
            report = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if report != "ok":
                raise damaged(self._name, None, f"every row is what was written, but SQLite reports: {report}")
        return head

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def _whole_head(self) -> tuple[int, bytes]:
        """The recorded head, if the log's end bears it out; else LogDamaged with the first bad offset of all."""
        try:
            return _checked_head(self._writer, self._name)
        except LogDamaged:
            for _ in self._rows(self._writer, 0, _recorded_head(self._writer, self._name)[0]):
                pass
            raise

    def _rows(self, connection: sqlite3.Connection, start: int, stop: int) -> Iterator[tuple[int, Entry]]:
        """Rows [start, stop), each checked; all of them, or LogDamaged with the first bad offset."""
        reached = start
        try:
            previous = _hash_before(connection, start, self._name)
            rows: Iterable[Row] = connection.execute(ROWS, (start, stop))
            for row in unseal(rows, start, previous, self._name):
                yield row
                reached += 1
        except sqlite3.ProgrammingError:  # the log is closed: a bug, not a state of the disk
            raise
        except SICK as error:
            raise _refused(error, self._path, reached) from error
        if reached < stop:
            raise damaged(self._name, reached, f"the row is missing, of {stop} or more that were written")

    def _read_about(self, about: str, start: int, stop: int, limit: int) -> list[tuple[int, Entry]]:
        try:
            about.encode()
        except UnicodeEncodeError:  # no event can hold such a name
            return []
        with _told(self._path):
            rows = self._reader.execute(ROWS_ABOUT, (about, start, stop, min(limit, stop))).fetchall()
        return [(row[0], opened(self._name, *row)) for row in rows]

    def _snapshot(self, offset: int) -> bytes | None:
        """The state of this snapshot; None if it is damaged or not of this log."""
        try:
            row = self._reader.execute(
                "SELECT row_hash, digest, state FROM snapshot WHERE offset = ?", (offset,)
            ).fetchone()
            bound = row[0] == _hash_before(self._reader, offset, self._name)
            return row[2] if bound and row[1] == hashlib.sha256(row[2]).digest() else None
        except (*SICK, LogDamaged):
            return None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that happens inside, durable at the end, or nothing of it."""
        with _told(self._path):
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise


def _make_if_absent(path: Path) -> None:
    """A new log appears under its name whole or not at all: an empty file there is damage, not a start."""
    name = str(path)
    try:
        if not os.path.lexists(path):  # a link to nowhere is no place for a new log: its disk may be away
            if _beside(path, "-wal").exists():
                raise damaged(name, None, "the file is gone, but the -wal file that belongs to it is still there")
            return _make(path)
        found = path.stat()
    except OSError as error:
        raise _unwritable(name, error.strerror or str(error), CHOOSE) from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise _unwritable(name, f"it is {kind}", "Move it away, or name another place for the log")
    if found.st_size == 0:
        raise damaged(name, 0, "the file is empty")


def _make(path: Path) -> None:
    new = _beside(path, ".new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(_connect(new)) as connection, _told(path):
        connection.executescript(SCHEMA)
        connection.execute("PRAGMA journal_mode = WAL")
    os.replace(new, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode for any one thread at a time; never makes the file."""
    with _told(path):
        connection = sqlite3.connect(
            path.absolute().as_uri() + "?mode=rw",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA cell_size_check = ON")
        except BaseException:
            connection.close()
            raise
        return connection


def _prove_usable(connection: sqlite3.Connection, name: str) -> None:
    """Raises unless this is a log of ours that this process can write to."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if application_id != APPLICATION_ID:
        raise damaged(name, None, "it is an SQLite database, but not a log of Dure")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > FORMAT:
        raise DureError(
            f"{name} was written by a newer Dure",
            f"the file is of format {found}, this Dure reads up to format {FORMAT}",
            "Start a Dure at least as new as the one that wrote this log",
        )
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise _unwritable(
            name, f"its file system cannot hold a write-ahead log (SQLite stays in mode {mode!r})", CHOOSE
        )
    with _one_view(connection):  # SQLite opens a read-only file without a word: only a write, here undone, tells
        connection.execute("UPDATE meta SET head = head")


def _recorded_head(connection: sqlite3.Connection, name: str) -> tuple[int, bytes]:
    """Rows that were written, and the hash of the last, as recorded beside them."""
    recorded = connection.execute("SELECT head, hash FROM meta").fetchone()
    if recorded is None:
        raise damaged(name, None, "the record of its head is missing")
    return recorded[0], recorded[1]


def _checked_head(connection: sqlite3.Connection, name: str) -> tuple[int, bytes]:
    """The recorded head, if the last row bears it out; else LogDamaged with the first bad offset."""
    head, digest = _recorded_head(connection, name)
    ends = "SELECT offset, hash FROM log ORDER BY offset"
    first, _ = connection.execute(f"{ends} LIMIT 1").fetchone() or (0, None)
    last, found = connection.execute(f"{ends} DESC LIMIT 1").fetchone() or (-1, GENESIS)
    if first < 0:
        raise damaged(name, first, "it holds a row before its first")
    if last > head - 1:
        raise damaged(name, max(head, 0), f"it goes on to row {last}, past the {head} rows that were written")
    if found != digest:
        raise damaged(name, max(last, 0), "the last row is not the one that was written last")
    return head, digest


def _hash_before(connection: sqlite3.Connection, offset: int, name: str) -> bytes:
    """The hash that the row at `offset` follows."""
    if offset == 0:
        return GENESIS
    row = connection.execute("SELECT hash FROM log WHERE offset = ?", (offset - 1,)).fetchone()
    if row is None:
        raise damaged(name, offset - 1, "the row is missing")
    return bytes(row[0])


@contextmanager
def _one_view(connection: sqlite3.Connection) -> Iterator[None]:
    """The log as it is now, whatever is appended meanwhile; what is written inside is undone."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite raises inside, as an error that says what to do."""
    try:
        yield
    except sqlite3.ProgrammingError:  # the log is closed: a bug, not a state of the disk
        raise
    except SICK as error:
        raise _refused(error, path) from error


CHOOSE = "Choose a folder on a local disk that this user may write to"
TORN = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}
UNWRITABLE = {
    sqlite3.SQLITE_FULL: ("the disk is full", "Free some space; the next append goes through by itself"),
    sqlite3.SQLITE_IOERR: ("the disk refused", "Look at the disk (full, over quota, failing?), then try again"),
    sqlite3.SQLITE_BUSY: ("another process is writing to it", "Stop the other Dure, or backup, of this home"),
    sqlite3.SQLITE_READONLY: ("it or its folder is read-only", CHOOSE),
    sqlite3.SQLITE_CANTOPEN: ("it, or a file beside it, cannot be opened", CHOOSE),
    sqlite3.SQLITE_TOOBIG: ("one value is larger than SQLite takes (1 GB)", "Report it: no event or state should be"),
    sqlite3.SQLITE_NOMEM: ("this process is out of memory", "Free some memory, then try again"),
}


def _refused(error: sqlite3.DatabaseError | UnicodeDecodeError, path: Path, offset: int | None = None) -> DureError:
    """SQLite's error as ours: LogUnwritable where the file is whole, LogDamaged where it is not."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # none: text that is not UTF-8
    if code & 0xFF in UNWRITABLE and code not in TORN:
        why, do = UNWRITABLE[code & 0xFF]
        return _unwritable(str(path), f"{why} (SQLite: {error})", do)
    return damaged(str(path), offset, f"it cannot be read (SQLite: {error})")


def _unwritable(name: str, why: str, do: str) -> LogUnwritable:
    return LogUnwritable(f"{name} cannot be written", why, do)
