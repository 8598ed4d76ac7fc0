"""The file: what it refuses to open, what it finds out, and what a full disk does to it."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.model.errors import DureError, LogDamaged, LogUnwritable
from dure.model.event import Entry, NodeLost, RunMoved
from dure.store import sqlite
from dure.store.chain import GENESIS, seal
from dure.store.sqlite import SqliteLog

COUNT = 60


def moves(count: int) -> list[Entry]:
    return [
        Entry(number, RunMoved(f"w{number % 7}.0.1", f"w{number % 7}", "running", number)) for number in range(count)
    ]


ROWS = list(enumerate(moves(COUNT)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of COUNT rows, closed."""
    path = tmp_path / "log.sqlite"
    written(path, COUNT)
    return path


def written(path: Path, count: int) -> None:
    with closing(SqliteLog(path)) as log:
        entries = moves(count)
        for at in range(0, count, 20):
            log.append(entries[at : at + 20])


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def verified(path: Path) -> int:
    with closing(SqliteLog(path)) as log:
        return log.verify()


def test_the_file_is_private_synced_and_marked(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes()[68:72] == b"Dure"
    with closing(SqliteLog(path)) as log:
        log.append(moves(1))
        for connection in (log._writer, log._reader):
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert all(each.stat().st_mode & 0o777 == 0o600 for each in path.parent.iterdir())
        plan = log._reader.execute(f"EXPLAIN QUERY PLAN {sqlite.ROWS_ABOUT}", ("w1", 0, 9, 9)).fetchall()
        assert "USING INDEX log_subject" in str(plan) and "TEMP B-TREE" not in str(plan)
    assert [each.name for each in path.parent.iterdir()] == ["log.sqlite"]


# Tampering: each names the first bad offset


def swap(one: int, other: int) -> tuple[str, ...]:
    steps = ((one, -1), (other, one), (-1, other))
    return tuple(f"UPDATE log SET offset = {to} WHERE offset = {offset}" for offset, to in steps)


TAMPERED: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "tail deleted": (57, ("DELETE FROM log WHERE offset >= 57",)),
    "all deleted": (0, ("DELETE FROM log",)),
    "first deleted": (0, ("DELETE FROM log WHERE offset = 0",)),
    "middle deleted": (20, ("DELETE FROM log WHERE offset = 20",)),
    "middle deleted, the rest moved up": (
        20,
        (
            "DELETE FROM log WHERE offset = 20",
            "UPDATE log SET offset = -offset WHERE offset > 20",
            "UPDATE log SET offset = -offset - 1 WHERE offset < 0",
        ),
    ),
    "swapped": (10, swap(10, 30)),
    "neighbours swapped": (0, swap(0, 1)),
    "first and last swapped": (0, swap(0, 59)),
    "body edited": (33, ("UPDATE log SET body = CAST(replace(body, 'running', 'started') AS BLOB) WHERE offset = 33",)),
    "body edited into another event": (
        33,
        ("UPDATE log SET body = (SELECT body FROM log WHERE offset = 26) WHERE offset = 33",),
    ),
    "body emptied": (33, ("UPDATE log SET body = x'' WHERE offset = 33",)),
    "time edited": (41, ("UPDATE log SET at_ns = at_ns + 1 WHERE offset = 41",)),
    "version edited": (42, ("UPDATE log SET v = 2 WHERE offset = 42",)),
    "hash edited": (43, ("UPDATE log SET hash = zeroblob(32) WHERE offset = 43",)),
    "hash emptied": (43, ("UPDATE log SET hash = x'' WHERE offset = 43",)),
    "last hash edited": (59, ("UPDATE log SET hash = zeroblob(32) WHERE offset = 59",)),
    "last body edited": (59, ("UPDATE log SET body = CAST(replace(body, '59', '58') AS BLOB) WHERE offset = 59",)),
    "filed under another": (44, ("UPDATE log SET subject = 'w9' WHERE offset = 44",)),
    "filed under none": (44, ("UPDATE log SET subject = NULL WHERE offset = 44",)),
    "filed under no text": (44, ("UPDATE log SET subject = CAST(x'ff' AS TEXT) WHERE offset = 44",)),
    "row before the first": (-1, ("INSERT INTO log SELECT -1, 0, 1, NULL, body, hash FROM log WHERE offset = 5",)),
    "row after the last": (60, ("INSERT INTO log SELECT 60, 0, 1, NULL, body, hash FROM log WHERE offset = 5",)),
    "head set back": (50, ("UPDATE meta SET head = 50",)),
    "head set on": (60, ("UPDATE meta SET head = 70",)),
    "head below zero": (0, ("UPDATE meta SET head = -5",)),
    "head's hash edited": (59, ("UPDATE meta SET hash = zeroblob(32)",)),
    "head deleted": (None, ("DELETE FROM meta",)),
    "two edits": (7, ("UPDATE log SET at_ns = 0 WHERE offset = 50", "UPDATE log SET at_ns = 0 WHERE offset = 7")),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_tampered_row_is_named_by_its_offset(path: Path, how: str) -> None:
    offset, statements = TAMPERED[how]
    edit(path, *statements)
    with pytest.raises(LogDamaged) as told:
        verified(path)
    assert told.value.offset == offset
    assert str(path) in told.value.what and told.value.why and "backup" in told.value.do
    assert offset is None or f"offset {offset}" in told.value.what


@pytest.mark.parametrize("how", ["middle deleted", "swapped", "body edited", "time edited", "filed under none"])
def test_read_gives_the_rows_before_the_damage_and_none_after(path: Path, how: str) -> None:
    offset, statements = TAMPERED[how]
    assert offset is not None
    edit(path, *statements)
    with closing(SqliteLog(path)) as log:
        assert log.read(0, offset) == ROWS[:offset]
        for start in (0, offset):
            with pytest.raises(LogDamaged, match=f"offset {offset}:"):
                log.read(start, COUNT)


def test_a_forged_row_with_a_hash_to_fit_breaks_the_next_one(path: Path) -> None:
    forged = seal([Entry(5, NodeLost("n1", ""))], 5, link_before(path, 5))[0]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE log SET at_ns=?, v=?, subject=?, body=?, hash=? WHERE offset=5", forged[1:])
    with pytest.raises(LogDamaged, match="offset 6"):
        verified(path)


def link_before(path: Path, offset: int) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        return bytes(connection.execute("SELECT hash FROM log WHERE offset = ?", (offset - 1,)).fetchone()[0])


def test_damage_made_while_the_log_is_open_is_found(path: Path) -> None:
    with closing(SqliteLog(path)) as log:
        edit(path, "DELETE FROM log WHERE offset >= 50")
        with pytest.raises(LogDamaged, match="offset 50"):
            log.read(40, 20)
        with pytest.raises(LogDamaged, match="offset 50"):
            log.verify()


def test_a_broken_index_is_found(path: Path) -> None:
    edit(path, "PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET sql = replace(sql, 'IS NOT NULL', '= ''w3''')")
    with pytest.raises(LogDamaged) as told:
        verified(path)
    assert told.value.offset is None and "SQLite reports" in told.value.why


# Snapshots


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE snapshot SET state = x'00' WHERE offset = 40",
        "UPDATE snapshot SET digest = zeroblob(32) WHERE offset = 40",
        "UPDATE snapshot SET row_hash = zeroblob(32) WHERE offset = 40",
        "UPDATE snapshot SET offset = 41 WHERE offset = 40",
        "UPDATE snapshot SET offset = 400 WHERE offset = 40",
        "DELETE FROM snapshot WHERE offset = 40",
    ],
)
def test_a_damaged_snapshot_is_passed_over(path: Path, damage: str) -> None:
    with closing(SqliteLog(path)) as log:
        log.save_snapshot(20, b"twenty")
        log.save_snapshot(40, b"forty")
        assert log.load_snapshot() == (40, b"forty")
    edit(path, damage)
    with closing(SqliteLog(path)) as log:
        assert log.load_snapshot() == (20, b"twenty")
    edit(path, "UPDATE snapshot SET state = x'00'")
    with closing(SqliteLog(path)) as log:
        assert log.load_snapshot() is None


def test_a_snapshot_of_another_log_is_passed_over(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with closing(SqliteLog(other)) as log:
        log.append([Entry(1, NodeLost("n1", "")) for _ in range(COUNT)])
        log.save_snapshot(30, b"state")
    edit(path, f"ATTACH '{other}' AS other", "INSERT INTO snapshot SELECT * FROM other.snapshot")
    with closing(SqliteLog(path)) as log:
        assert log.load_snapshot() is None


def test_a_snapshot_past_the_head_shows_that_the_log_was_cut(path: Path) -> None:
    with closing(SqliteLog(path)) as log:
        log.save_snapshot(60, b"state")
        digest = link_before(path, 50).hex()
    edit(path, "DELETE FROM log WHERE offset >= 50", f"UPDATE meta SET head = 50, hash = x'{digest}'")
    with pytest.raises(LogDamaged, match=r"offset 50: .*snapshot was taken after 60"):
        verified(path)


def test_a_large_snapshot(path: Path) -> None:
    state = os.urandom(8 << 20)
    with closing(SqliteLog(path)) as log:
        for offset in (10, 20, 30, 40):
            log.save_snapshot(offset, state)
    assert path.stat().st_size < 4 * len(state)
    with closing(SqliteLog(path)) as log:
        assert log.load_snapshot() == (40, state)


def test_a_snapshot_is_found_while_newer_ones_push_it_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(SqliteLog(path)) as log:
        log.save_snapshot(20, b"twenty")
        take = log._snapshot

        def pushed_out(offset: int) -> bytes | None:
            log.save_snapshot(30, b"thirty")
            log.save_snapshot(40, b"forty")
            return take(offset)

        monkeypatch.setattr(log, "_snapshot", pushed_out)
        assert log.load_snapshot() == (20, b"twenty")


# Files that are no whole log


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


# Places where no log can be written


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Not root for a while: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that any user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def refused(path: Path, match: str) -> None:
    with pytest.raises(LogUnwritable, match=match) as told:
        SqliteLog(path)
    assert str(path) in told.value.what and told.value.why and told.value.do


def test_a_read_only_folder_is_refused(shared_folder: Path) -> None:
    path = shared_folder / "log.sqlite"
    with ordinary_user():
        written(path, COUNT)
        os.chmod(path, 0o400)
        refused(path, "read-only")
    os.chmod(path, 0o666)
    os.chmod(shared_folder, 0o555)
    with ordinary_user():
        refused(path, "read-only|cannot be opened")
        refused(shared_folder / "new.sqlite", "Permission denied")
    os.chmod(shared_folder, 0o000)
    with ordinary_user():
        refused(path, "Permission denied")
    os.chmod(shared_folder, 0o777)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("folder", "a folder"),
        ("absent/log", "No such file"),
        ("file/log", "Not a directory"),
        ("x" * 300, "too long"),
        ("pipe", "not a regular file"),
        ("loop", "symbolic links|symlink"),
    ],
)
def test_a_path_where_no_file_can_be_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent" / "log.sqlite")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / name, why)


@pytest.mark.parametrize("name", ["a b?mode=ro#x%41", "두레.sqlite", "'; DROP TABLE log --", ":memory:", "\udcff"])
def test_a_path_is_only_a_path(tmp_path: Path, name: str) -> None:
    written(tmp_path / name, COUNT)
    assert verified(tmp_path / name) == COUNT
    assert [each.name for each in tmp_path.iterdir()] == [name]


# Another writer


def test_a_locked_log_says_so_and_takes_the_append_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    with closing(SqliteLog(path)) as log, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnwritable, match="another process is writing"):
            log.append(moves(1))
        with pytest.raises(LogUnwritable, match="another process is writing"):
            log.save_snapshot(1, b"")
        refused(path, "another process is writing")
        assert log.head == len(log.read(0, 100)) == COUNT
        other.execute("ROLLBACK")
        assert log.append(moves(1)) == COUNT


def test_a_second_writer_cannot_interleave(path: Path) -> None:
    with closing(SqliteLog(path)) as first, closing(SqliteLog(path)) as second:
        first.append(moves(1))
        with pytest.raises(LogUnwritable, match=r"another process has appended to it"):
            second.append(moves(2))
        assert first.append(moves(1)) == COUNT + 1
        assert first.verify() == COUNT + 2


def test_a_closed_log_is_a_bug_of_its_caller(path: Path) -> None:
    log = SqliteLog(path)
    log.close()
    log.close()
    for use in (lambda: log.append(moves(1)), lambda: log.read(0, 1), lambda: log.read(0, 1, "w1"), log.load_snapshot):
        with pytest.raises(sqlite3.ProgrammingError):
            use()


# A full disk


def refuses_until_there_is_space(log: SqliteLog, make_space: Callable[[], None]) -> None:
    """`log` has COUNT rows and no space; nothing of a refused batch stays, and the next append works."""
    big = [Entry(0, NodeLost("n1", "x" * 4000)) for _ in range(200)]
    for _ in range(3):
        with pytest.raises(LogUnwritable, match=r"the disk (is full|refused)"):
            log.append(big)
        with pytest.raises(LogUnwritable, match=r"the disk (is full|refused)"):
            log.save_snapshot(5, bytes(2_000_000))
    assert log.head == log.verify() == COUNT
    assert log.read(0, 1000) == ROWS
    make_space()
    assert log.append(big) == COUNT
    assert log.verify() == COUNT + 200
    assert log.read(0, COUNT) == ROWS
    log.save_snapshot(5, b"small")


def test_a_full_database_takes_appends_again(path: Path) -> None:
    with closing(SqliteLog(path)) as log:
        pages = log._writer.execute("PRAGMA page_count").fetchone()[0]
        log._writer.execute(f"PRAGMA max_page_count = {pages + 5}")

        def more_pages() -> None:
            log._writer.execute("PRAGMA max_page_count = 100000")

        refuses_until_there_is_space(log, more_pages)
    assert verified(path) == COUNT + 200


def test_a_write_cut_off_by_a_quota_is_undone(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(SqliteLog(path)) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10_000, hard))
        try:
            refuses_until_there_is_space(log, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert verified(path) == COUNT + 200


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; skips where this user may not mount one."""
    folder.mkdir()
    if not shutil.which("mount"):
        pytest.skip("no mount program here")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        if subprocess.run(["umount", folder], check=False).returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)
            pytest.fail("a file of the log was left open")


def test_a_full_disk_takes_appends_again(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        path, ballast = disk / "log.sqlite", disk / "ballast"
        written(path, COUNT)
        with closing(SqliteLog(path)) as log:
            fill(ballast)
            refuses_until_there_is_space(log, ballast.unlink)
        fill(ballast)
        with pytest.raises(LogUnwritable, match=r"the disk is full|the disk refused|No space"):
            SqliteLog(path).append([Entry(0, NodeLost("n1", "x" * 2_000_000))])
        refused(disk / "new.sqlite", "disk is full|the disk refused|No space")
        ballast.unlink()
        assert verified(path) == COUNT + 200


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def test_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        written(disk / "log.sqlite", COUNT)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused(disk / "log.sqlite", "read-only|cannot be opened")
        refused(disk / "new.sqlite", "Read-only file system")


def test_the_genesis_is_what_a_new_log_starts_from(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "log.sqlite")) as log:
        log.append(moves(1))
        assert link_before(tmp_path / "log.sqlite", 1) == seal(moves(1), 0, GENESIS)[0][5]
