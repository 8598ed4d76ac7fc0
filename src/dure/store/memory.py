"""A log in memory, for tests and the twin: rows go through the same bytes as on disk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from dure.model.event import Entry
from dure.store.chain import GENESIS, Row, opened, seal, unseal
from dure.store.log import check_offset, check_range

NAME = "log in memory"


class MemoryLog:
    """A Log that lasts as long as its process."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._about: dict[str, list[int]] = {}
        self._snapshot: tuple[int, bytes] | None = None

    @property
    def head(self) -> int:
        return len(self._rows)

    def append(self, entries: Sequence[Entry]) -> int:
        start = self.head
        rows = seal(entries, start, self._hash_before(start))
        self._rows.extend(rows)
        for row in rows:
            if row[3] is not None:
                self._about.setdefault(row[3], []).append(row[0])
        return start

    def read(self, start: int, limit: int, about: str | None = None) -> list[tuple[int, Entry]]:
        check_range(start, limit)
        if about is None:
            rows = self._rows[start : start + limit]
            return list(unseal(rows, start, self._hash_before(start), NAME))
        offsets = self._about.get(about, [])
        first = bisect_left(offsets, start)
        rows = [self._rows[offset] for offset in offsets[first : first + limit]]
        return [(row[0], opened(NAME, row[0], row[1], row[2], row[4])) for row in rows]

    def save_snapshot(self, offset: int, state: bytes) -> None:
        check_offset(offset, self.head)
        if self._snapshot is None or self._snapshot[0] <= offset:  # memory is not damaged: one is enough
            self._snapshot = (offset, state)

    def load_snapshot(self) -> tuple[int, bytes] | None:
        return self._snapshot

    def verify(self) -> int:
        return sum(1 for _ in unseal(self._rows, 0, GENESIS, NAME))

    def close(self) -> None:
        """Nothing to let go of."""

    def _hash_before(self, offset: int) -> bytes:
        return self._rows[offset - 1][5] if 0 < offset <= len(self._rows) else GENESIS
