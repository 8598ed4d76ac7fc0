"""The queue's index: who needs a run, by shape, in order. Derived from State.needs; never in the log."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator

from dure.model.workload import ChipAsk, Refusal


class Queue:
    """Needs (`WORKLOAD.REPLICA`) ready to be placed, grouped by shape, and those waiting for a time.

    A shape that could not be placed stays `blocked` until capacity comes back, so that a long
    queue of equal asks costs one failed placement, not one each.
    """

    def __init__(self) -> None:
        self._ready: dict[ChipAsk, OrderedDict[str, int]] = {}
        """Shape -> need -> its turn. Taken from the front, where a plain dict would search past all it lost."""
        self._later: list[tuple[int, str, ChipAsk]] = []
        self._untold: dict[ChipAsk, dict[str, None]] = {}
        self._blocked: dict[ChipAsk, Refusal] = {}
        self._next = 0

    def add(self, need: str, shape: ChipAsk, not_before_ns: int) -> None:
        if not_before_ns > 0:
            heapq.heappush(self._later, (not_before_ns, need, shape))
            return
        self._ready.setdefault(shape, OrderedDict())[need] = self._next
        self._untold.setdefault(shape, {})[need] = None
        self._next += 1

    def capacity_came(self) -> None:
        self._blocked.clear()

    def due(self, now_ns: int, still: Callable[[str], bool]) -> None:
        """Move needs whose time has come to the ready ones."""
        while self._later and self._later[0][0] <= now_ns:
            _, need, shape = heapq.heappop(self._later)
            if still(need):
                self.add(need, shape, 0)

    def heads(self, still: Callable[[str], bool]) -> Iterator[tuple[str, ChipAsk]]:
        """The oldest need first, over all shapes not blocked. The caller calls `placed` or `block`
        for each before asking for the next; needs that are `still` no longer needs are dropped."""
        heap = [head for shape in list(self._ready) if (head := self._head(shape, still)) is not None]
        heapq.heapify(heap)
        while heap:
            _, need, shape = heapq.heappop(heap)
            yield need, shape
            head = self._head(shape, still)
            if head is not None:
                heapq.heappush(heap, head)

    def _head(self, shape: ChipAsk, still: Callable[[str], bool]) -> tuple[int, str, ChipAsk] | None:
        needs = self._ready.get(shape)
        while needs and shape not in self._blocked:
            need, order = next(iter(needs.items()))
            if still(need):
                return order, need, shape
            self.placed(need, shape)
        return None

    def placed(self, need: str, shape: ChipAsk) -> None:
        """Forget a need that `heads` gave."""
        for group in (self._ready, self._untold):
            needs = group.get(shape)
            if needs is not None:
                needs.pop(need, None)
                if not needs:
                    del group[shape]

    def block(self, shape: ChipAsk, refusal: Refusal) -> None:
        self._blocked[shape] = refusal

    def untold(self, still: Callable[[str], bool]) -> Iterator[tuple[str, Refusal]]:
        """Needs of blocked shapes whose wait has not been explained yet; each is given once."""
        for shape in [shape for shape in self._untold if shape in self._blocked]:
            for need in self._untold.pop(shape):
                if still(need):
                    yield need, self._blocked[shape]
