"""The shell around `turn`: group commit, a log that cannot be written, snapshots, a clock that steps back."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json

from dure.cloud import loop as loop_module
from dure.cloud.loop import Loop, Snapshot, restore
from dure.computing import inbox as ib
from dure.computing.turn import Core
from dure.model import event as ev
from dure.model.chip import Chip, Node
from dure.model.errors import DureError, LogUnwritable
from dure.model.event import Entry
from dure.model.usage import TokenRow
from dure.model.wire import Beat, Hello, Lease, LogChunk, Order, ReadLog, Recorded, Routes, RunStatus, ToGateway, Usage
from dure.model.workload import Ask, ChipAsk, Command, Exit, Refusal, Serve
from dure.store.memory import MemoryLog

T0_NS = 1_790_000_000_000_000_000
JOB = Ask(Command(("true",)))
MODELS = ["simulated-echo"]
ROW = TokenRow("k1", "default", "simulated-echo", "w1.0.1", 29_833_333, 1, 5, 7)


class SlowLog(MemoryLog):
    """Each append waits for `gate`, and fails while `full`. `batches`: entries of each that went through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.full, self.trying = threading.Event(), False, 0
        self.gate.set()
        self.batches: list[int] = []

    def append(self, entries: Sequence[Entry]) -> int:
        self.trying += 1
        assert self.gate.wait(20)
        if self.full:
            raise LogUnwritable("the log cannot be written", "the disk is full", "Free some space")
        self.batches.append(len(entries))
        return super().append(entries)


class NoSnapshots(MemoryLog):
    """The rows of another log, and none of its snapshots."""

    def __init__(self, of: MemoryLog) -> None:
        super().__init__()
        self.append([entry for _, entry in of.read(0, of.head)])


def clock() -> Callable[[], int]:
    ticks = itertools.count(T0_NS, 1_000_000_000)
    return lambda: next(ticks)


@asynccontextmanager
async def running(log: MemoryLog, clock_ns: Callable[[], int] | None = None) -> AsyncIterator[Loop]:
    """A loop at work, with project `default` and no chips."""
    loop = Loop(log, MODELS, clock_ns or clock(), "link")
    turning = asyncio.create_task(loop.run())
    if not loop.core.state.projects:
        await loop.ask(lambda token: ib.MakeProject("default", "up", token), str)
    try:
        yield loop
    finally:
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)


async def true_soon(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def hello(count: int = 4, node: str = "n", boot: str = "b") -> ib.AgentHello:
    chips = tuple(
        Chip(f"{node}:cpu{i}", node, "cpu", i, "Maker", "A core", "real", "cpu", "metal") for i in range(count)
    )
    return ib.AgentHello(Hello(Node(node, "host", 1024, "0", boot), chips, ()))


def submit(*asks: Ask) -> Callable[[int], ib.Item]:
    return lambda token: ib.Submit(asks or (JOB,), "k1", token)


def usage(start: int = 0, upto: int = 10, link: int = 1) -> ib.UsageIn:
    return ib.UsageIn(link, Usage("gateway-0", start, upto, hashlib.sha256(b"x").hexdigest(), (ROW,)))


def bytes_of(core: Core) -> bytes:
    return json.encode(Snapshot(core.state, core.ledger)) + repr(core.columns.snapshot()).encode()


def holds(log: MemoryLog, kind: type[ev.Event]) -> bool:
    return any(isinstance(entry.event, kind) for _, entry in log.read(0, log.head))


def test_many_asks_share_few_appends() -> None:
    async def main() -> None:
        log = SlowLog()
        async with running(log) as loop:
            log.batches.clear()
            log.gate.clear()
            asks = [asyncio.create_task(loop.ask(submit(), tuple)) for _ in range(300)]
            await true_soon(lambda: log.trying > 1)
            assert not any(ask.done() for ask in asks), "answered before it was on disk"
            log.gate.set()
            answers = await asyncio.gather(*asks)
            assert len(log.batches) <= 3
            assert {done[0].id for done in answers if isinstance(done, tuple)} == {f"w{i}" for i in range(1, 301)}

    asyncio.run(main())


def test_a_turn_takes_no_more_asks_than_it_may() -> None:
    async def main() -> None:
        log = SlowLog()
        async with running(log) as loop:
            log.batches.clear()
            batches = [loop.ask(submit(*[JOB] * 900), tuple) for _ in range(6)]
            done = [answer for answer in await asyncio.gather(*batches) if isinstance(answer, tuple)]
            assert max(log.batches) <= loop_module.TURN_ASKS and sum(log.batches) == 5400
            ids = [one.id for answer in done for one in answer]
            assert ids == [f"w{i}" for i in range(1, 5401)], "out of order"

    asyncio.run(main())


def test_a_batch_over_the_turns_measure_is_still_taken() -> None:
    async def main() -> None:
        async with running(SlowLog()) as loop:
            done = await loop.ask(submit(*[JOB] * (loop_module.TURN_ASKS + 1)), tuple)
            assert isinstance(done, tuple) and len(done) == loop_module.TURN_ASKS + 1

    asyncio.run(main())


def test_a_log_that_cannot_be_written_tells_every_waiter_and_changes_nothing() -> None:
    async def main() -> None:
        log = SlowLog()
        async with running(log) as loop:
            loop.put(hello())
            await loop.ask(submit(), tuple)
            before, head = bytes_of(loop.core), log.head
            log.full = True
            kinds: list[Callable[[int], ib.Item]] = [
                submit(),
                submit(JOB, JOB),
                lambda token: ib.StopWork("w1", "k1", token),
                lambda token: ib.MakeProject("p2", "k1", token),
                lambda token: ib.MakeKey("default", "d" * 64, False, "k1", token),
            ]
            told = await asyncio.gather(*(loop.ask(kind, object) for kind in kinds), return_exceptions=True)
            assert [type(error) for error in told] == [LogUnwritable] * len(kinds)
            assert bytes_of(loop.core) == before and log.head == head
            log.full = False
            done = await loop.ask(submit(), tuple)
            assert isinstance(done, tuple) and done[0].id == "w2", "a number was lost"
            assert bytes_of(restore(log, MODELS)) == bytes_of(loop.core)

    asyncio.run(main())


def test_a_hello_on_a_full_disk_is_taken_once_there_is_space() -> None:
    async def main() -> None:
        log = SlowLog()
        async with running(log) as loop:
            log.full = True
            loop.put(hello())
            await true_soon(lambda: log.trying >= 3)
            await true_soon(lambda: "n" not in loop.core.state.nodes)  # a try under way is ahead of the disk
            log.full = False
            await true_soon(lambda: holds(log, ev.NodeJoined))
            log.full = True
            loop.put(ib.AgentGone("n", "its link closed"))
            tried = log.trying
            await true_soon(lambda: log.trying >= tried + 2)
            log.full = False
            await true_soon(lambda: holds(log, ev.NodeLost))
            assert not loop.core.state.nodes["n"].linked

    asyncio.run(main())


def test_a_full_disk_takes_no_lease_from_what_runs() -> None:
    async def main() -> None:
        log = SlowLog()
        async with running(log) as loop:
            outbox: asyncio.Queue[Order] = asyncio.Queue()
            loop.agents["n"] = outbox
            loop.put(hello())
            await loop.ask(submit(), tuple)
            while not outbox.empty():
                outbox.get_nowait()
            log.full = True
            tried = log.trying
            loop.put(ib.AgentBeat("n", Beat((RunStatus("w1.0.1", "running", 5, 42),))))
            order = await asyncio.wait_for(outbox.get(), 20)
            assert log.trying > tried and isinstance(order, Lease)
            assert loop.core.state.runs["w1.0.1"].phase == "placed", "the move is not on disk"

    asyncio.run(main())


def test_usage_that_was_not_written_is_asked_for_again() -> None:
    async def main() -> None:
        log = SlowLog()
        async with running(log) as loop:
            outbox: asyncio.Queue[ToGateway] = asyncio.Queue()
            loop.gateways[1] = outbox
            log.full = True
            loop.put(usage())
            assert await asyncio.wait_for(outbox.get(), 20) == Recorded("gateway-0", 0)
            assert isinstance(await asyncio.wait_for(outbox.get(), 20), Routes)
            log.full = False
            for _ in range(2):  # the second time it is there already
                loop.put(usage())
                assert await asyncio.wait_for(outbox.get(), 20) == Recorded("gateway-0", 10)
            used = [entry.event for _, entry in log.read(0, 100) if isinstance(entry.event, ev.TokensUsed)]
            assert [event.rows for event in used] == [(ROW,)]

    asyncio.run(main())


def test_a_snapshot_for_which_there_is_no_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "SNAPSHOT_ROWS", 1)
    monkeypatch.setattr(loop_module, "SNAPSHOT_BYTES_A_ROW", 1 << 40)
    refused: list[int] = []

    class Small(MemoryLog):
        def save_snapshot(self, offset: int, state: bytes) -> None:
            refused.append(offset)
            raise LogUnwritable("the log cannot be written")

    async def main() -> None:
        async with running(Small()) as loop:
            for _ in range(3):
                assert isinstance(await loop.ask(submit(), tuple), tuple)
        assert len(refused) >= 3

    asyncio.run(main())


def test_an_event_that_can_never_be_written_ends_the_loop() -> None:
    class Picky(MemoryLog):
        def append(self, entries: Sequence[Entry]) -> int:
            raise ValueError("would not read back")

    async def main() -> None:
        loop = Loop(Picky(), MODELS, clock(), "link")
        loop.put(ib.Started("0"))
        with pytest.raises(ValueError, match="read back"):
            await asyncio.wait_for(loop.run(), 20)

    asyncio.run(main())


def test_the_log_never_goes_back_in_time() -> None:
    steps = iter([T0_NS, T0_NS + 5, T0_NS - 3_600_000_000_000, T0_NS - 1, T0_NS + 7])
    last = T0_NS + 8

    async def main() -> None:
        log = MemoryLog()
        async with running(log, lambda: next(steps, last)) as loop:
            for _ in range(4):
                await loop.ask(submit(), tuple)
        times = [entry.at_ns for _, entry in log.read(0, 100)]
        assert times == sorted(times) and times[0] == T0_NS and T0_NS - 1 not in times

    asyncio.run(main())


def test_output_of_a_run_comes_from_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOG_ANSWER_S", 0.02)

    async def main() -> None:
        async with running(MemoryLog()) as loop:
            with pytest.raises(DureError, match="n is away"):
                await loop.read_log("w1.0.1", "n", 0)
            outbox: asyncio.Queue[Order] = asyncio.Queue()
            loop.agents["n"] = outbox
            with pytest.raises(DureError, match="does not answer"):
                await loop.read_log("w1.0.1", "n", 0)
            late = await outbox.get()
            assert isinstance(late, ReadLog)
            loop.log_chunk(LogChunk(late.request, 0, b"late"))  # nobody waits for it any more
            monkeypatch.setattr(loop_module, "LOG_ANSWER_S", 20)
            asked = asyncio.create_task(loop.read_log("w1.0.1", "n", 7))
            order = await outbox.get()
            assert isinstance(order, ReadLog) and (order.run, order.offset) == ("w1.0.1", 7)
            for data in (b"first", b"again"):  # an agent that answers twice
                loop.log_chunk(LogChunk(order.request, 7, data))
            assert (await asked).data == b"first"

    asyncio.run(main())


def test_stopping_what_is_not_there_is_a_refusal() -> None:
    async def main() -> None:
        async with running(MemoryLog()) as loop:
            done = await loop.ask(lambda token: ib.StopWork("w9", "k1", token), str)
            assert isinstance(done, Refusal) and done.code == "no_such"

    asyncio.run(main())


KINDS = ["submit", "serve", "stop", "beat", "hello", "gone", "usage", "key"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)))


@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(3, 40))
def test_a_snapshot_and_what_followed_is_the_log_from_its_beginning(steps: list[tuple[str, int]], every: int) -> None:
    async def main() -> None:
        log = MemoryLog()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop_module, "SNAPSHOT_ROWS", every)
            patch.setattr(loop_module, "SNAPSHOT_BYTES_A_ROW", 1 << 40)
            patch.setattr(loop_module, "REPLAY_ROWS", 3)
            async with running(log) as loop:
                loop.put(hello())
                for step, number in steps:
                    await _do(loop, step, number)
                await loop.ask(lambda token: ib.MakeProject("last", "up", token), str)
                live = bytes_of(loop.core)
                await true_soon(lambda: log.head < every or log.load_snapshot() is not None)
            assert bytes_of(restore(log, MODELS)) == bytes_of(restore(NoSnapshots(log), MODELS)) == live

    asyncio.run(main())


async def _do(loop: Loop, step: str, number: int) -> None:
    match step:
        case "submit":
            await loop.ask(submit(*[Ask(JOB.work, ChipAsk("cpu", 1, 100 * (number + 1)))] * 3), tuple)
        case "serve":
            await loop.ask(submit(Ask(Serve("simulated-echo"), ChipAsk("cpu", 1, 300), replicas=number + 1)), tuple)
        case "stop":
            await loop.ask(lambda token: ib.StopWork(f"w{number}", "k1", token), str)
        case "beat":
            runs = [run for run in loop.core.state.runs.values() if run.phase != "ended"]
            ended = Exit("exited", number % 2)
            loop.put(ib.AgentBeat("n", Beat(tuple(_status(run.id, i == number, ended) for i, run in enumerate(runs)))))
        case "hello":
            loop.put(hello(4 + number % 2, boot=f"b{number}"))
        case "gone":
            loop.put(ib.AgentGone("n", "its link closed"))
        case "usage":
            done = loop.core.state.journals.get("gateway-0", 0)
            loop.put(usage(done, done + number))
        case "key":
            await loop.ask(lambda token: ib.MakeKey("default", f"{number}", False, "k1", token), str)


def _status(run: str, ends: bool, exit: Exit) -> RunStatus:
    return RunStatus(run, "ended", 9, exit=exit) if ends else RunStatus(run, "running", 5, 42, "http://127.0.0.1:1")
