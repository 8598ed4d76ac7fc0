"""The file, rows that were tampered with, and snapshots."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dure.model.errors import LogDamaged
from dure.model.event import Entry, NodeLost
from dure.store import sqlite
from dure.store.chain import GENESIS, seal
from dure.store.sqlite import SqliteLog
from tests.store.written import COUNT, ROWS, edit, link_before, moves, verified


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


def test_the_genesis_is_what_a_new_log_starts_from(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "log.sqlite")) as log:
        log.append(moves(1))
        assert link_before(tmp_path / "log.sqlite", 1) == seal(moves(1), 0, GENESIS)[0][5]
