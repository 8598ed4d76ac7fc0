"""Column arrays per chip kind: the index that placement reads. Kept by the fold; rebuilt from State it is equal."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dure.model.chip import Chip
from dure.model.units import WHOLE_CHIP_MILLI


class KindColumns:
    """All chips of one kind, a row each, in the order they joined.

    `free` milli left (int32), `node` index into `nodes` (int32), `usable` linked and healthy (bool).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ids: list[str] = []
        self.free: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.node: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.usable: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._sizes: tuple[int, int] | None = None

    def sizes(self) -> tuple[int, int]:
        """(nodes that have chips of this kind, chips on the largest of them), whatever is held of them."""
        if self._sizes is None:
            per_node = np.bincount(self.node)
            self._sizes = int((per_node > 0).sum()), int(per_node.max())
        return self._sizes

    def renew(self, keep: npt.NDArray[np.bool_]) -> None:
        """Only the rows kept."""
        self.ids = [chip for chip, kept in zip(self.ids, keep.tolist(), strict=True) if kept]
        self.free, self.node, self.usable, self._sizes = self.free[keep], self.node[keep], self.usable[keep], None

    def extend(self, ids: list[str], free: list[int], node: list[int], usable: list[bool]) -> None:
        self.ids += ids
        self.free = np.concatenate([self.free, np.array(free, np.int32)])
        self.node = np.concatenate([self.node, np.array(node, np.int32)])
        self.usable = np.concatenate([self.usable, np.array(usable, np.bool_)])
        self._sizes = None


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
            columns.usable[row] = linked and chip.health == "healthy"
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
            [self._node_index[chip.node] for chip, _, _ in rows],
            [linked and chip.health == "healthy" for chip, _, linked in rows],
        )

    def take(self, chip: str, milli: int) -> None:
        """Hold `milli` of a chip; negative gives back."""
        columns, row = self._row[chip]
        columns.free[row] -= milli

    def close(self, chips: Iterable[str]) -> None:
        """No placement on these chips any more (node unlinked, chip gone)."""
        for chip in chips:
            columns, row = self._row[chip]
            columns.usable[row] = False

    def drop(self, chips: Iterable[str]) -> None:
        """Forget these chips' rows; the order of the others stays."""
        gone = {chip for chip in chips if chip in self._row}
        for columns in {id(self._row[chip][0]): self._row[chip][0] for chip in gone}.values():
            columns.renew(np.array([chip not in gone for chip in columns.ids], np.bool_))
            self._row.update({chip: (columns, row) for row, chip in enumerate(columns.ids)})
            if not columns.ids:
                del self.kinds[columns.kind]
        for chip in gone:
            del self._row[chip]

    def snapshot(self) -> dict[str, tuple[str, str, int, bool]]:
        """Chip -> (kind, node, free milli, usable): what the arrays say, row by row, for comparing two indexes."""
        return {
            chip: (kind, self.nodes[columns.node[row]], int(columns.free[row]), bool(columns.usable[row]))
            for kind, columns in self.kinds.items()
            for row, chip in enumerate(columns.ids)
        }
