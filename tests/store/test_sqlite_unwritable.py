"""Places where no log can be written, other writers, and full disks."""

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

from dure.model.errors import LogUnwritable
from dure.model.event import Entry, NodeLost
from dure.store import sqlite
from dure.store.sqlite import SqliteLog
from tests.store.written import COUNT, ROWS, moves, refused, verified, written


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
