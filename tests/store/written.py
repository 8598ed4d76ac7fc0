"""Logs of known rows, and ways to spoil them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dure.model.errors import LogUnwritable
from dure.model.event import Entry, RunMoved
from dure.store.sqlite import SqliteLog

COUNT = 60


def moves(count: int) -> list[Entry]:
    return [
        Entry(number, RunMoved(f"w{number % 7}.0.1", f"w{number % 7}", "running", number)) for number in range(count)
    ]


ROWS = list(enumerate(moves(COUNT)))


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


def link_before(path: Path, offset: int) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        return bytes(connection.execute("SELECT hash FROM log WHERE offset = ?", (offset - 1,)).fetchone()[0])


def refused(path: Path, match: str) -> None:
    with pytest.raises(LogUnwritable, match=match) as told:
        SqliteLog(path)
    assert str(path) in told.value.what and told.value.why and told.value.do
