"""Files that are no whole log: each is told, none changes what is read."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.model.errors import DureError, LogDamaged, LogUnwritable
from dure.model.event import Entry
from dure.store import sqlite
from dure.store.sqlite import SqliteLog
from tests.store.written import COUNT, ROWS, edit, moves, verified, written


@pytest.mark.parametrize(
    "content", [b"plain text\n", b"x" * 5000, b"\x89PNG\r\n\x1a\n" + bytes(4096), b"SQLite format 3\x00"]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.sqlite"
    path.write_bytes(content)
    with pytest.raises(LogDamaged, match=r"log\.sqlite is damaged"):
        SqliteLog(path)
    assert path.read_bytes() == content


def test_another_sqlite_database_is_refused(tmp_path: Path) -> None:
    edit(tmp_path / "log.sqlite", "CREATE TABLE log (offset)")
    with pytest.raises(LogDamaged, match="not a log of Dure"):
        SqliteLog(tmp_path / "log.sqlite")


def test_a_newer_format_is_refused_by_both_versions(path: Path) -> None:
    edit(path, "PRAGMA user_version = 9")
    with pytest.raises(DureError, match=r"newer Dure.*format 9.*format 1.*Start a Dure at least as new") as told:
        SqliteLog(path)
    assert not isinstance(told.value, LogDamaged | LogUnwritable)


def test_an_empty_file_is_damage_not_a_new_log(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(LogDamaged, match="the file is empty"):
        SqliteLog(path)


def test_a_log_gone_from_beside_its_wal_is_damage_not_a_new_log(path: Path) -> None:
    with closing(SqliteLog(path)) as log:
        log.append(moves(1))
        path.unlink()
        with pytest.raises(LogDamaged, match="the file is gone"):
            SqliteLog(path)


def test_what_a_first_start_left_half_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "log.sqlite.new").write_bytes(b"SQLite for")
    with closing(SqliteLog(tmp_path / "log.sqlite")) as log:
        assert log.append(moves(1)) == 0
    assert not (tmp_path / "log.sqlite.new").exists()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("whole_pages", [True, False])
def test_a_truncated_file_is_damage(path: Path, share: float, whole_pages: bool) -> None:
    keep = max(1, int(path.stat().st_size * share))
    os.truncate(path, max(keep // 4096 * 4096, 4096) if whole_pages else keep | 1)
    with pytest.raises(LogDamaged):
        verified(path)


def sound_or_told(path: Path, rows: list[tuple[int, Entry]]) -> bool:
    """Whether the log is whole; where it says so, it gives exactly the rows. Anything but a DureError fails."""
    try:
        with closing(SqliteLog(path)) as log:
            log.verify()
            assert log.read(0, len(rows) + 1) == rows
            assert [offset for offset, _ in log.read(0, len(rows), "w3")] == list(range(3, len(rows), 7))
            log.load_snapshot()
    except (LogDamaged, LogUnwritable) as error:
        assert error.what and error.why and error.do
        return False
    except DureError as error:
        assert "newer" in error.what
        return False
    return True


@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x0d", b"Z"])
def test_a_corrupted_page_is_damage(tmp_path: Path, fill: bytes) -> None:
    path, count = tmp_path / "log.sqlite", 400
    written(path, count)
    content = path.read_bytes()
    rows, pages = list(enumerate(moves(count))), len(content) // 4096
    assert pages > 20
    for page in range(pages):
        path.write_bytes(content[: page * 4096] + fill * 4096 + content[(page + 1) * 4096 :])
        whole = sound_or_told(path, rows)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        assert not whole or "snapshot" in owner(content, page, tmp_path), f"page {page} of {pages}"


def owner(content: bytes, page: int, folder: Path) -> str:
    """The table or index whose root that page is."""
    (folder / "copy").write_bytes(content)
    with closing(sqlite3.connect(folder / "copy")) as connection:
        found = connection.execute("SELECT name FROM sqlite_schema WHERE rootpage = ?", (page + 1,)).fetchone()
    return str(found)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "log.sqlite"
    written(path, COUNT)
    return path


@settings(deadline=None, max_examples=80)
@given(where=st.floats(0, 1, exclude_max=True), header=st.booleans(), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_what_is_read(small: Path, where: float, header: bool, bit: int) -> None:
    content = small.read_bytes()
    at = int(where * (100 if header else len(content)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.sqlite"
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        sound_or_told(path, ROWS)


def test_a_schema_that_is_no_text_any_more_is_damage(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(b"STRICT") + 2
    path.write_bytes(content[:at] + bytes([content[at] | 0x80]) + content[at + 1 :])
    with pytest.raises(LogDamaged, match="cannot be read"):
        SqliteLog(path)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_IOERR_READ, LogDamaged),
        (sqlite3.SQLITE_IOERR_CORRUPTFS, LogDamaged),
        (sqlite3.SQLITE_CORRUPT_INDEX, LogDamaged),
        (sqlite3.SQLITE_IOERR_FSYNC, LogUnwritable),
        (sqlite3.SQLITE_BUSY_RECOVERY, LogUnwritable),
    ],
)
def test_a_disk_that_cannot_be_read_is_damage_one_that_cannot_be_written_is_not(code: int, kind: type) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    told = sqlite._refused(error, Path("log.sqlite"), 7)
    assert type(told) is kind and told.why and told.do


@pytest.mark.parametrize("flip", [False, True])
def test_a_torn_write_ahead_log_leaves_whole_batches(tmp_path: Path, flip: bool) -> None:
    """Power fails while the -wal is written: what comes back is a prefix of the batches."""
    live, entries = tmp_path / "log.sqlite", moves(COUNT)
    with closing(SqliteLog(live)) as log:
        for at in range(0, COUNT, 5):
            log.append(entries[at : at + 5])
        base, wal = live.read_bytes(), live.with_name("log.sqlite-wal").read_bytes()
    seen = set()
    for number in range(22):
        keep = len(wal) * number // 21 - number % 3
        folder = tmp_path / f"{number}"
        folder.mkdir()
        torn = wal[:keep] + (bytes([wal[keep] ^ 1]) + wal[keep + 1 :] if flip and 0 <= keep < len(wal) else b"")
        (folder / "log.sqlite").write_bytes(base)
        (folder / "log.sqlite-wal").write_bytes(torn)
        with closing(SqliteLog(folder / "log.sqlite")) as log:
            assert log.head % 5 == 0
            assert log.verify() == log.head
            assert log.read(0, COUNT) == ROWS[: log.head]
            seen.add(log.head)
            log.append(entries[log.head :])
            assert log.verify() == COUNT
    assert {0, COUNT} <= seen and len(seen) >= 6
