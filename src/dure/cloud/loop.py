"""The shell around `turn`: one task takes the inbox, writes the events, then lets the effects happen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from msgspec import Struct, json

from dure.cloud.routes import routes
from dure.computing import inbox as ib
from dure.computing.state import State
from dure.computing.turn import Core
from dure.metering.ledger import Ledger
from dure.model.errors import DureError, LogUnwritable
from dure.model.event import Entry
from dure.model.wire import Lease, LogChunk, Order, ReadLog, Recorded, ToGateway
from dure.model.workload import Refusal
from dure.store.log import Log

TURN_ITEMS = 500
TURN_ASKS = 2000
"""Items, and asks in them, that a turn takes: bounds how long the event loop is held."""
SNAPSHOT_ROWS = 100_000
SNAPSHOT_BYTES_A_ROW = 100
"""A large state is written seldom: never more than so many bytes of snapshot for each row of the log."""
LOG_ANSWER_S = 5.0
REPLAY_ROWS = 10_000
V = TypeVar("V")


class Snapshot(Struct):
    state: State
    ledger: Ledger


def restore(log: Log, models: Sequence[str]) -> Core:
    """The core as the log tells it: newest snapshot, then every later row."""
    found = log.load_snapshot()
    start, core = 0, Core(models)
    if found is not None:
        start, raw = found
        snapshot = json.decode(raw, type=Snapshot)
        core = Core(models, snapshot.state, snapshot.ledger)
    while rows := log.read(start, REPLAY_ROWS):
        for _, entry in rows:
            core.replay(entry.at_ns, entry.event)
        start = rows[-1][0] + 1
    core.reindex()
    return core


class Loop:
    """Owns the core. `agents` and `gateways` are the outboxes of the links, by node and by number."""

    def __init__(self, log: Log, models: Sequence[str], clock_ns: Callable[[], int], link_key: str) -> None:
        self.log = log
        self.core = restore(log, models)
        self.agents: dict[str, asyncio.Queue[Order]] = {}
        self.gateways: dict[int, asyncio.Queue[ToGateway]] = {}
        self._models, self._clock_ns, self._link_key = models, clock_ns, link_key
        self.on_disk = asyncio.Event()
        """Clear while the core is ahead of the log: what it says now may yet be forgotten."""
        self.on_disk.set()
        self._inbox: list[ib.Item] = []
        self._wake = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[object]] = {}
        self._chunks: dict[int, asyncio.Future[LogChunk]] = {}
        self._token = 0
        self._snapshot_at = log.head
        self._snapshot_rows = SNAPSHOT_ROWS
        self._now_ns = 0

    def put(self, item: ib.Item) -> None:
        self._inbox.append(item)
        self._wake.set()

    async def ask(self, make: Callable[[int], ib.Item], answer: type[V]) -> V | Refusal:
        """Put an item that wants a reply; its reply, once everything it decided is on disk.

        Raises LogUnwritable when the log could not take it: then nothing happened.
        """
        self._token += 1
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting[self._token] = future
        self.put(make(self._token))
        value = await future
        assert isinstance(value, answer | Refusal), f"{value!r} is no {answer}"
        return value

    async def run(self) -> None:
        """Turn after turn, for ever; at least one a second."""
        while True:
            if not self._inbox and not self.core.more:
                try:
                    await asyncio.wait_for(self._wake.wait(), 1.0)
                except TimeoutError:
                    self._inbox.append(ib.Tick())
            self._wake.clear()
            await self._turn(self._taken())

    def _taken(self) -> list[ib.Item]:
        """The next turn's items, out of the inbox."""
        count = asks = 0
        for item in self._inbox[:TURN_ITEMS]:
            asks += len(item.asks) if isinstance(item, ib.Submit) else 0
            if count and asks > TURN_ASKS:
                break
            count += 1
        items, self._inbox = self._inbox[:count], self._inbox[count:]
        return items

    async def _turn(self, items: list[ib.Item]) -> None:
        now_ns = self._now_ns = max(self._clock_ns(), self._now_ns)
        events, effects = self.core.turn(now_ns, items)
        if events:
            entries = [Entry(now_ns, event) for event in events]
            self.on_disk.clear()
            try:
                await asyncio.to_thread(self.log.append, entries)
            except LogUnwritable as error:
                # The fold is ahead of the disk: forget it, and tell whoever waits that nothing happened.
                self.core = await asyncio.to_thread(restore, self.log, self._models)
                self._undo(items, error)
                for effect in effects:
                    if isinstance(effect, ib.Tell) and isinstance(effect.order, Lease):
                        self._act(effect)  # owes nothing to the events: a full disk must not end what runs
                self._push()
                self.on_disk.set()
                await asyncio.sleep(0.2)
                return
            self.on_disk.set()
        push = False
        for effect in effects:
            push = push or isinstance(effect, ib.Push)
            self._act(effect)
        if push:
            self._push()
        if self.log.head - self._snapshot_at >= self._snapshot_rows:
            self._snapshot_at = self.log.head
            raw = json.encode(Snapshot(self.core.state, self.core.ledger))
            self._snapshot_rows = max(SNAPSHOT_ROWS, len(raw) // SNAPSHOT_BYTES_A_ROW)
            with contextlib.suppress(LogUnwritable):  # only the next start is slower
                await asyncio.to_thread(self.log.save_snapshot, self._snapshot_at, raw)
        await asyncio.sleep(0)  # who waited for `on_disk` reads before the next turn

    def _undo(self, items: Sequence[ib.Item], error: LogUnwritable) -> None:
        # Said once only, so they come again; a beat comes again by itself, an ask is its caller's to repeat.
        self._inbox[:0] = [item for item in items if isinstance(item, ib.Started | ib.AgentHello | ib.AgentGone)]
        for item in items:
            if isinstance(item, ib.UsageIn):
                known = self.core.state.journals.get(item.usage.journal, 0)
                self._act(ib.Record(item.link, Recorded(item.usage.journal, known)))
                continue
            token = getattr(item, "reply", 0)
            future = self._waiting.pop(token, None)
            if future is not None and not future.done():
                future.set_exception(error)

    def _act(self, effect: ib.Effect) -> None:
        match effect:
            case ib.Tell():
                outbox = self.agents.get(effect.node)
                if outbox is not None:
                    outbox.put_nowait(effect.order)
            case ib.Reply():
                future = self._waiting.pop(effect.to, None)
                if future is not None and not future.done():
                    future.set_result(effect.value)
            case ib.Record():
                link = self.gateways.get(effect.link)
                if link is not None:
                    link.put_nowait(effect.recorded)

    def _push(self) -> None:
        now = routes(self.core.state, self._link_key)
        for outbox in self.gateways.values():
            outbox.put_nowait(now)

    async def read_log(self, run: str, node: str, offset: int) -> LogChunk:
        """A piece of a run's output from its node. Raises DureError when the node is away."""
        outbox = self.agents.get(node)
        if outbox is None:
            raise DureError(f"no output of run {run}", f"its node {node} is away", "Try again when it is back")
        self._token += 1
        token = self._token
        future: asyncio.Future[LogChunk] = asyncio.get_running_loop().create_future()
        self._chunks[token] = future
        outbox.put_nowait(ReadLog(token, run, offset))
        try:
            return await asyncio.wait_for(future, LOG_ANSWER_S)
        except TimeoutError:
            raise DureError(f"no output of run {run}", f"its node {node} does not answer", "Try again") from None
        finally:
            self._chunks.pop(token, None)

    def log_chunk(self, chunk: LogChunk) -> None:
        future = self._chunks.get(chunk.request)
        if future is not None and not future.done():
            future.set_result(chunk)
