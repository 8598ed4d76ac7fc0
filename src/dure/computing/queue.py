"""The queue's index: who needs a run, by shape, in order. Derived from State.needs; never in the log."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from dure.model.workload import ChipAsk, Refusal


class Queue:
    """Needs (`WORKLOAD.REPLICA`) ready to be placed, grouped by shape, and those waiting for a time.

    A shape that could not be placed stays `blocked` until capacity comes back, so that a long
    queue of equal asks costs one failed placement, not one each.
    """

    def __init__(self) -> None:
        self._ready: dict[ChipAsk, dict[str, int]] = {}
        self._later: list[tuple[int, str, ChipAsk]] = []
        self._untold: dict[ChipAsk, list[str]] = {}
        self._blocked: dict[ChipAsk, Refusal] = {}
        self._next = 0

    def add(self, need: str, shape: ChipAsk, not_before_ns: int) -> None:
        if not_before_ns > 0:
            heapq.heappush(self._later, (not_before_ns, need, shape))
            return
        self._ready.setdefault(shape, {})[need] = self._next
        self._untold.setdefault(shape, []).append(need)
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
        heap: list[tuple[int, int, ChipAsk]] = []
        for rank, (shape, needs) in enumerate(self._ready.items()):
            if shape not in self._blocked and needs:
                heap.append((next(iter(needs.values())), rank, shape))
        heapq.heapify(heap)
        while heap:
            _, rank, shape = heapq.heappop(heap)
            needs = self._ready[shape]
            while needs and not still(next(iter(needs))):
                needs.pop(next(iter(needs)))
            if not needs:
                continue
            yield next(iter(needs)), shape
            if shape not in self._blocked and needs:
                heapq.heappush(heap, (next(iter(needs.values())), rank, shape))

    def placed(self, need: str, shape: ChipAsk) -> None:
        self._ready[shape].pop(need)
        if not self._ready[shape]:
            del self._ready[shape]
            self._untold.pop(shape, None)

    def block(self, shape: ChipAsk, refusal: Refusal) -> None:
        self._blocked[shape] = refusal

    def untold(self, still: Callable[[str], bool]) -> Iterator[tuple[str, Refusal]]:
        """Needs of blocked shapes whose wait has not been explained yet; each is given once."""
        for shape in [shape for shape in self._untold if shape in self._blocked]:
            for need in self._untold.pop(shape):
                if still(need):
                    yield need, self._blocked[shape]
