"""The port: what the rest of Dure asks of a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dure.model.event import Entry


class Log(Protocol):
    """One sequence of entries; the offset of a row is its number, from 0.

    One thread at a time appends; any thread may read meanwhile. All calls block: an event loop
    makes them in a thread. A row that a newer Dure wrote is refused with a DureError that names both
    versions.
    """

    @property
    def head(self) -> int:
        """Rows in the log, which is the next offset."""
        ...

    def append(self, entries: Sequence[Entry]) -> int:
        """Make all entries durable, or none, as one batch; the offset of the first.

        Raises LogUnwritable when the log cannot take them now (the same call may work later), and
        ValueError when an entry would not read back as it is (NaN, a list for a tuple, a newer
        `v`): no later try will help.
        """
        ...

    def read(self, start: int, limit: int, about: str | None = None) -> list[tuple[int, Entry]]:
        """At most `limit` rows from offset `start` on, in order; with `about`, only those whose
        `subject` it is. Raises LogDamaged: rows read without `about` are checked against the chain.
        """
        ...

    def save_snapshot(self, offset: int, state: bytes) -> None:
        """Keep the state after all rows before `offset`. The two of highest offset are kept.

        Raises LogUnwritable, and ValueError for an offset past the head.
        """
        ...

    def load_snapshot(self) -> tuple[int, bytes] | None:
        """The newest snapshot that is undamaged and of this very log, as (offset, state)."""
        ...

    def verify(self) -> int:
        """Check every row; the number checked. Raises LogDamaged with the first bad offset."""
        ...

    def close(self) -> None: ...


def check_range(start: int, limit: int) -> None:
    if start < 0 or limit < 0:
        raise ValueError(f"rows are read from an offset >= 0 and at most a number >= 0, not {start} and {limit}")


def check_offset(offset: int, head: int) -> None:
    if not 0 <= offset <= head:
        raise ValueError(f"a snapshot after {offset} rows of a log of {head}")
