"""What every Log does, over each implementation."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dure.model.chip import Chip, Node, Power
from dure.model.errors import DureError
from dure.model.event import (
    EVENT_V,
    ControlStarted,
    Entry,
    Event,
    KeyCreated,
    NodeJoined,
    NodeLost,
    ProjectCreated,
    RunAdopted,
    RunEnded,
    RunMoved,
    RunPlaced,
    RunsMetered,
    StopAsked,
    TokensUsed,
    WorkloadEnded,
    WorkloadRefused,
    WorkloadSubmitted,
    WorkloadWaits,
    subject,
)
from dure.model.usage import RunMeter, TokenRow
from dure.model.workload import Ask, Command, Exit, Plan, Refusal, Serve, Slice, Workload
from dure.store.log import Log
from dure.store.memory import MemoryLog
from dure.store.sqlite import SqliteLog

OpenLog = Callable[[], Log]


@contextmanager
def place(kind: str) -> Iterator[OpenLog]:
    """Opens the same log each time it is called; what it opened is closed at the end."""
    if kind == "memory":
        log = MemoryLog()
        yield lambda: log
        return
    opened: list[SqliteLog] = []
    with tempfile.TemporaryDirectory() as folder:

        def again() -> Log:
            opened.append(SqliteLog(Path(folder) / "log.sqlite"))
            return opened[-1]

        yield again
        for each in opened:
            each.close()


@pytest.fixture(params=["memory", "sqlite"])
def open_log(request: pytest.FixtureRequest) -> Iterator[OpenLog]:
    with place(request.param) as opened:
        yield opened


def moved(workload: str, at_ns: int = 0) -> Entry:
    return Entry(at_ns, RunMoved(f"{workload}.0.1", workload, "running", 7))


def lost(count: int) -> list[Entry]:
    return [Entry(number, NodeLost("n1", f"why {number}")) for number in range(count)]


REFUSAL = Refusal("busy", "12 nodes: 7 full", "place", {"full": 7, "lost": 5}, 5)
CHIP = Chip(
    "n1:npu0", "n1", "rngd", 0, "v", "m", "simulated", "simulated", "none", power=Power(1.5, 150, "published", "")
)
EACH: tuple[Event, ...] = (
    ControlStarted("0.1.0"),
    ProjectCreated("연구실", "k1"),
    KeyCreated("k1", "default", "ab" * 32, True, "up"),
    NodeJoined(Node("n1", "host", 32_000, "0.1.0", "b1"), (CHIP,)),
    NodeLost("n1", "no beat for 10 s"),
    WorkloadSubmitted(Workload("w1", Ask(Command(("echo", "두레 🚜\n\x00"), {"A": "b"})), "k1", 1)),
    WorkloadRefused(Workload("w2", Ask(Serve("smollm2-135m"), replicas=2), "k1", 2), REFUSAL),
    WorkloadWaits("w1", REFUSAL),
    StopAsked("w1", "k1"),
    WorkloadEnded("w1", "done", ""),
    RunPlaced("w1.0.1", "w1", 0, 1, Plan("n1", (Slice("n1:npu0", 1000),), "only one")),
    RunMoved("w1.0.1", "w1", "running", 42, "http://127.0.0.1:1"),
    RunAdopted("w1.0.1", "w1", "agent", 42),
    RunEnded("w1.0.1", "w1", Exit("signalled", signal=9)),
    RunsMetered("n1", (RunMeter("w1.0.1", 5, None, None, "no meter"),), None, 2**62),
    TokensUsed("g0", 9, "cd" * 32, (TokenRow("k1", "default", "m", "w1.0.1", 3, 1, 2, 3),)),
)


def test_every_kind_of_event_reads_back_equal(open_log: OpenLog) -> None:
    assert {type(event) for event in EACH} == set(get_args(Event))
    entries = [Entry(1_790_000_000_000_000_000 + at, event) for at, event in enumerate(EACH)]
    log = open_log()
    assert log.append(entries) == 0
    assert open_log().read(0, 100) == list(enumerate(entries))
    assert log.verify() == len(EACH)


def test_an_empty_log(open_log: OpenLog) -> None:
    log = open_log()
    assert (log.head, log.verify(), log.load_snapshot()) == (0, 0, None)
    assert log.read(0, 10) == log.read(5, 10) == log.read(0, 10, "w1") == []


def test_append_gives_the_first_offset_and_an_empty_batch_writes_nothing(open_log: OpenLog) -> None:
    log = open_log()
    assert log.append(lost(3)) == 0
    assert log.append([]) == 3
    assert log.append(lost(1)) == 3
    assert log.head == open_log().head == 4


def test_read_gives_the_rows_asked_for(open_log: OpenLog) -> None:
    log, entries = open_log(), lost(10)
    log.append(entries)
    assert log.read(3, 4) == list(enumerate(entries))[3:7]
    assert log.read(8, 2**70) == list(enumerate(entries))[8:]
    assert log.read(10, 1) == log.read(2**70, 1) == log.read(0, 0) == []
    for start, limit in ((-1, 5), (0, -1)):
        with pytest.raises(ValueError, match="at most"):
            log.read(start, limit)


def test_read_about_one_workload(open_log: OpenLog) -> None:
    log = open_log()
    log.append([moved("w1", 0), moved("w2", 1), *lost(1), moved("w1", 3)])
    log.append([moved("w1", 4), moved("W1", 5), moved("w1 ", 6)])
    assert log.read(0, 10, "w1") == [(0, moved("w1", 0)), (3, moved("w1", 3)), (4, moved("w1", 4))]
    assert log.read(1, 1, "w1") == [(3, moved("w1", 3))]
    assert [offset for offset, _ in log.read(4, 2**70, "w1")] == [4]
    assert log.read(5, 10, "w1") == log.read(0, 0, "w1") == []


@pytest.mark.parametrize("name", ["", "w3", "w", "%", "' OR 1=1 --", "w1\x00", "\ud800", "가" * 100_000])
def test_read_about_no_known_workload_is_empty(open_log: OpenLog, name: str) -> None:
    log = open_log()
    log.append([moved("w1")])
    assert log.read(0, 10, name) == []


@pytest.mark.parametrize(
    "poison",
    [
        Entry(0, NodeLost("n1", "\ud800")),
        Entry(0, NodeJoined(Node("n1", "h", 1, "v", "b"), [CHIP])),  # type: ignore[arg-type]
        Entry(0, WorkloadEnded("w1", "done", 3)),  # type: ignore[arg-type]
        Entry(0, RunMoved("r", "w", "nowhere")),  # type: ignore[arg-type]
        Entry(0, NodeJoined(Node("n1", "h", 1, "v", "b"), (replace(CHIP, run_s=float("nan")),))),
        Entry(2**63, NodeLost("n1", "")),
        Entry(0.5, NodeLost("n1", "")),  # type: ignore[arg-type]
        Entry(0, NodeLost("n1", ""), v=EVENT_V + 1),
        Entry(0, NodeLost("n1", ""), v=0),
        Entry(0, Node("n1", "h", 1, "v", "b")),  # type: ignore[arg-type]
        Entry(0, object()),  # type: ignore[arg-type]
    ],
    ids=[
        "surrogate",
        "list",
        "wrong type",
        "unknown phase",
        "nan",
        "big time",
        "half a ns",
        "newer",
        "v0",
        "no event",
        "object",
    ],
)
def test_an_entry_that_would_not_read_back_is_refused_with_its_whole_batch(open_log: OpenLog, poison: Entry) -> None:
    log, entries = open_log(), lost(4)
    log.append(entries[:2])
    with pytest.raises(ValueError, match=r"entry of version|cannot be written"):
        log.append([moved("w1"), poison, moved("w1")])
    assert (log.head, log.read(0, 9, "w1")) == (2, [])
    log.append(entries[2:])
    assert open_log().read(0, 9) == list(enumerate(entries))
    assert log.verify() == 4


def test_a_row_of_a_newer_dure_is_refused_by_both_versions(open_log: OpenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log()
    monkeypatch.setattr("dure.store.chain.EVENT_V", 7)
    log.append([*lost(2), Entry(0, RunMoved("w1.0.1", "w1", "running"), v=7)])
    monkeypatch.setattr("dure.store.chain.EVENT_V", 5)
    assert len(log.read(0, 2)) == 2
    for read in (lambda: log.read(0, 9), lambda: log.read(0, 9, "w1"), log.verify, lambda: open_log().read(2, 1)):
        with pytest.raises(DureError, match=r"row 2 .* newer Dure.*version 7.*version 5.*Start a Dure at least as new"):
            read()


def test_a_large_event(open_log: OpenLog) -> None:
    log = open_log()
    entry = Entry(0, NodeLost("n1", "두" * 3_000_000))
    log.append([entry])
    assert open_log().read(0, 1) == [(0, entry)]


def test_the_last_two_snapshots_are_kept(open_log: OpenLog) -> None:
    log = open_log()
    log.append(lost(10))
    log.save_snapshot(0, b"")
    assert log.load_snapshot() == (0, b"")
    for offset in (3, 5, 9):
        log.save_snapshot(offset, b"state %d" % offset)
    assert open_log().load_snapshot() == (9, b"state 9")
    log.save_snapshot(9, b"again")
    log.append(lost(1))
    log.save_snapshot(7, b"late")
    assert open_log().load_snapshot() == (9, b"again")
    for offset in (-1, 12):
        with pytest.raises(ValueError, match="log of 11"):
            log.save_snapshot(offset, b"")
    assert log.verify() == 11


def test_reading_and_verifying_while_another_thread_appends(open_log: OpenLog) -> None:
    log, entries, failed = open_log(), lost(1200), list[BaseException]()

    def append() -> None:
        try:
            for at in range(0, len(entries), 4):
                log.append(entries[at : at + 4])
                log.save_snapshot(log.head, b"state")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=append)
    thread.start()
    seen = 0
    while thread.is_alive():
        head = log.head
        assert log.read(seen, 10_000)[: head - seen] == list(enumerate(entries))[seen:head]
        assert head <= log.verify()
        snapshot = log.load_snapshot()
        assert snapshot is None or snapshot[0] % 4 == 0
        seen = head
    thread.join()
    assert not failed
    assert log.read(0, 10_000) == list(enumerate(entries))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from(["w1", "w2", "w3"])
numbers = st.integers(-(2**63), 2**63 - 1)
events = st.one_of(
    st.builds(NodeLost, texts, texts),
    st.builds(RunMoved, texts, names, st.sampled_from(["placed", "running"]), st.none() | numbers, st.none() | texts),
    st.builds(WorkloadEnded, names, st.sampled_from(["done", "failed"]), texts),
    st.builds(RunsMetered, texts, st.just(()), st.none() | numbers, st.none() | numbers),
)
batches = st.lists(st.lists(st.builds(Entry, numbers, events), max_size=6), max_size=8)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@settings(deadline=None, max_examples=25)
@given(batches=batches, snapshot=st.integers(0, 48), start=st.integers(0, 50), limit=st.integers(0, 50))
def test_what_was_appended_reads_back_in_order(
    kind: str, batches: list[list[Entry]], snapshot: int, start: int, limit: int
) -> None:
    flat = [entry for batch in batches for entry in batch]
    with place(kind) as open_log:
        log = open_log()
        for batch in batches:
            assert log.append(batch) == log.head - len(batch)
            log = open_log() if len(batch) == 3 else log
        offset = min(snapshot, len(flat))
        log.save_snapshot(offset, b"x" * offset)
        log = open_log()
        rows = list(enumerate(flat))
        assert log.head == log.verify() == len(flat)
        assert log.read(0, len(flat) + 1) == rows
        assert log.read(start, limit) == rows[start : start + limit]
        for name in ("w1", "w2", "w3"):
            about = [row for row in rows[start:] if subject(row[1].event) == name]
            assert log.read(start, limit, name) == about[:limit]
        assert log.load_snapshot() == (offset, b"x" * offset)
