"""Column arrays per chip kind: the index that placement reads. Kept by the fold; rebuilt from State it is equal."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dure.model.chip import Chip
from dure.model.units import WHOLE_CHIP_MILLI

CLOSED = -10_000


class KindColumns:
    """All chips of one kind, a row each, in the order they joined.

    `free` milli left (int16), `open` the same where the chip is linked and healthy, else CLOSED (int16),
    `node` index into `Columns.nodes` (intp).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ids: list[str] = []
        self.free: npt.NDArray[np.int16] = np.zeros(0, np.int16)
        self.open: npt.NDArray[np.int16] = np.zeros(0, np.int16)
        self.node: npt.NDArray[np.intp] = np.zeros(0, np.intp)
        self._sizes: tuple[int, int] | None = None

    def extend(self, ids: list[str], free: list[int], closed: list[bool], node: list[int]) -> None:
        self.ids += ids
        new = np.array(free, np.int16)
        self.free = np.concatenate([self.free, new])
        self.open = np.concatenate([self.open, np.where(closed, np.int16(CLOSED), new)])
        self.node = np.concatenate([self.node, np.array(node, np.intp)])
        self._sizes = None

    def renew(self, keep: npt.NDArray[np.bool_]) -> None:
        """Only the rows kept."""
        self.ids = [chip for chip, kept in zip(self.ids, keep.tolist(), strict=True) if kept]
        self.free, self.open, self.node = self.free[keep], self.open[keep], self.node[keep]
        self._sizes = None

    def sizes(self) -> tuple[int, int]:
        """(nodes with such chips, the most such chips on one node)."""
        if self._sizes is None:
            per_node = np.bincount(self.node)
            self._sizes = int(np.count_nonzero(per_node)), int(per_node.max(initial=0))
        return self._sizes


class Columns:
    """Rows of every kind that has any, and where each chip's row is."""

    def __init__(self) -> None:
        self.kinds: dict[str, KindColumns] = {}
        self.nodes: list[str] = []
        self._node_index: dict[str, int] = {}
        self._row: dict[str, tuple[KindColumns, int]] = {}

    def put(self, chips: Iterable[tuple[Chip, int, bool]]) -> None:
        """Add chips, or renew those known: (chip, milli held, node linked). Of another kind, it joins anew."""
        new: dict[str, list[tuple[Chip, int, bool]]] = {}
        for chip, held, linked in chips:
            known = self._row.get(chip.id)
            if known is not None and known[0].kind != chip.kind:
                self.drop([chip.id])
                known = None
            if known is None:
                new.setdefault(chip.kind, []).append((chip, held, linked))
                continue
            columns, row = known
            columns.free[row] = WHOLE_CHIP_MILLI - held
            columns.open[row] = WHOLE_CHIP_MILLI - held if linked and chip.health == "healthy" else CLOSED
        for kind, rows in new.items():
            self._append(self.kinds.setdefault(kind, KindColumns(kind)), rows)

    def _append(self, columns: KindColumns, rows: list[tuple[Chip, int, bool]]) -> None:
        first = len(columns.ids)
        for at, (chip, _, _) in enumerate(rows):
            if chip.node not in self._node_index:
                self._node_index[chip.node] = len(self.nodes)
                self.nodes.append(chip.node)
            self._row[chip.id] = (columns, first + at)
        columns.extend(
            [chip.id for chip, _, _ in rows],
            [WHOLE_CHIP_MILLI - held for _, held, _ in rows],
            [not (linked and chip.health == "healthy") for chip, _, linked in rows],
            [self._node_index[chip.node] for chip, _, _ in rows],
        )

    def take(self, chip: str, milli: int) -> None:
        """Hold `milli` of a chip; negative gives back."""
        columns, row = self._row[chip]
        columns.free[row] -= milli
        if columns.open[row] != CLOSED:
            columns.open[row] = columns.free[row]

    def close(self, chips: Iterable[str]) -> None:
        """No placement on these chips any more (node unlinked, chip gone)."""
        for chip in chips:
            columns, row = self._row[chip]
            columns.open[row] = CLOSED

    def drop(self, chips: Iterable[str]) -> None:
        """Forget these chips' rows; the order of the others stays."""
        gone = {chip for chip in chips if chip in self._row}
        for columns in {self._row[chip][0].kind: self._row[chip][0] for chip in gone}.values():
            columns.renew(np.array([chip not in gone for chip in columns.ids], np.bool_))
            self._row.update({chip: (columns, row) for row, chip in enumerate(columns.ids)})
            if not columns.ids:
                del self.kinds[columns.kind]
        for chip in gone:
            del self._row[chip]

    def snapshot(self) -> dict[str, tuple[str, str, int, bool]]:
        """Chip -> (kind, node, free milli, open): what the arrays say, row by row, for comparing two indexes."""
        return {
            chip: (kind, self.nodes[columns.node[row]], int(columns.free[row]), bool(columns.open[row] != CLOSED))
            for kind, columns in self.kinds.items()
            for row, chip in enumerate(columns.ids)
        }
