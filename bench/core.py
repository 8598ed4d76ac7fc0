"""How fast the core decides: `python -m bench.core [--nodes NODES.csv[.gz]] [--dir DIR] [--rounds N]`.

Submissions go the whole way that production takes them: admit, place, plan with reasons, encoded and on disk, folded.
Bare: `place` and the taking of its chips alone, same asks, same order, same run. NODES has columns `sn` and `gpu`;
without it the fleet is made up, of the same size.
"""

from __future__ import annotations

import argparse
import csv
import gc
import gzip
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.figures import Figure
from bench.store import entries
from dure.cloud.loop import restore
from dure.computing import inbox as ib
from dure.computing.place.columns import Columns
from dure.computing.place.place import place
from dure.computing.turn import Core
from dure.model.chip import Chip, Node
from dure.model.event import ControlStarted, Entry, NodeJoined, ProjectCreated, RunPlaced
from dure.model.units import NS_PER_MINUTE, NS_PER_S
from dure.model.wire import Beat, Hello, RunStatus
from dure.model.workload import Ask, ChipAsk, Command, Plan
from dure.store.sqlite import SqliteLog

START_NS = 1_800_000_000 * NS_PER_S
TURN_ASKS = 500
"""Asks of one turn, as one batch of 100 from each of five clients."""
REPLAYED = 200_000
RUNS = 1000
BEATS = 300
SIZES = ((1, 250, 30), (1, 500, 20), (1, 1000, 38), (2, 1000, 6), (4, 1000, 3), (8, 1000, 3))
"""(chips, milli of each, how many asks of a hundred)"""

Fleet = list[tuple[Node, tuple[Chip, ...]]]


def fleet(sizes: Sequence[int], kind: str = "gpu") -> Fleet:
    """A node for each number of chips."""
    made = []
    for number, size in enumerate(sizes):
        name = f"n{number}"
        chips = tuple(
            Chip(f"{name}:{kind}{index}", name, kind, index, "Simulated", kind, "simulated", "simulated", "none")
            for index in range(size)
        )
        made.append((Node(name, name, 262_144, "bench", "1"), chips))
    return made


def listed(path: Path) -> list[int]:
    """Chips of each node of a list."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [int(row["gpu"]) for row in csv.DictReader(file) if int(row["gpu"])]


def asks(count: int) -> list[Ask]:
    chosen = random.Random(7)
    shapes = [ChipAsk("gpu", chips, milli) for chips, milli, weight in SIZES for _ in range(weight)]
    return [
        Ask(Command(("python", "train.py", "--seed", str(number))), chosen.choice(shapes)) for number in range(count)
    ]


def joined(nodes: Fleet) -> Core:
    core = Core(())
    hellos = [ib.AgentHello(Hello(node, chips, ())) for node, chips in nodes]
    core.turn(START_NS, [ib.Started("bench"), ib.MakeProject("default", "bench", 0), *hellos])
    return core


def whole_way(nodes: Fleet, wanted: Sequence[Ask], folder: Path) -> float:
    """Placements a second, each on disk before the next turn."""
    core, log = joined(nodes), SqliteLog(folder / f"log-{time.monotonic_ns()}")
    gc.freeze()  # as control does with what it has replayed
    batches = [tuple(wanted[at : at + 100]) for at in range(0, len(wanted), 100)]
    placed, turns = 0, TURN_ASKS // 100
    began = time.perf_counter()
    for at in range(0, len(batches), turns):
        now_ns = START_NS + at * 1_000_000
        events, _ = core.turn(now_ns, [ib.Submit(batch, "k1", 1) for batch in batches[at : at + turns]])
        log.append([Entry(now_ns, event) for event in events])
        placed += sum(isinstance(event, RunPlaced) for event in events)
    took = time.perf_counter() - began
    gc.unfreeze()
    log.close()
    assert placed > 0.95 * len(wanted), f"only {placed} of {len(wanted)} found room: the fleet is full"
    return placed / took


def bare(nodes: Fleet, wanted: Sequence[Ask]) -> float:
    """Placements a second of the kernel alone."""
    columns = Columns()
    columns.put((chip, 0, True) for _, chips in nodes for chip in chips)
    began = time.perf_counter()
    placed = 0
    for ask in wanted:
        plan = place(columns, ask.chips)
        if isinstance(plan, Plan):
            placed += 1
            for piece in plan.slices:
                columns.take(piece.chip, piece.milli)
    return placed / (time.perf_counter() - began)


def placing(sizes: Sequence[int], at_least: float, folder: Path, rounds: int) -> Figure:
    nodes = fleet(sizes)
    wanted = asks(min(5000, sum(sizes) * 6 // 10))
    whole, kernel = [], []
    for _ in range(rounds):
        whole.append(whole_way(nodes, wanted, folder))
        kernel.append(bare(nodes, wanted))
    name = f"admit, place, plan, on disk, folded: {len(sizes):,} nodes, {sum(sizes):,} chips"
    beside = f"bare kernel {statistics.median(kernel):,.0f}/s"
    return Figure(name, statistics.median(whole), "placements/s", at_least=at_least, beside=beside)


def replaying(folder: Path, rounds: int) -> Figure:
    """What control does when it starts without a snapshot: read, check against the chain, decode, fold."""
    chip = Chip("node-1:cpu0", "node-1", "cpu", 0, "Nobody", "cpu", "real", "cpu", "none")
    first = (
        ControlStarted("bench"),
        ProjectCreated("default", "bench"),
        NodeJoined(Node("node-1", "n", 1, "bench", "1"), (chip,)),
    )
    log = SqliteLog(folder / "replay")
    log.append([Entry(START_NS - NS_PER_S, event) for event in first])
    log.append(entries(REPLAYED))
    folded, read = [], []
    for _ in range(rounds):
        gc.collect()
        gc.disable()  # as control does while it replays
        began = time.perf_counter()
        core = restore(log, ())
        folded.append(log.head / (time.perf_counter() - began))
        assert core.state.next_workload > REPLAYED // 6
        del core
        began = time.perf_counter()
        for start in range(0, log.head, 10_000):
            log.read(start, 10_000)
        read.append(log.head / (time.perf_counter() - began))
        gc.enable()
    log.close()
    beside = f"read and decoded alone {statistics.median(read):,.0f}/s"
    return Figure(f"replay of {REPLAYED:,} rows", statistics.median(folded), "events/s", beside=beside)


def beating() -> list[Figure]:
    """Turns that take one beat of a node with a thousand runs; one in sixty also meters them all."""
    core = joined(fleet([RUNS // 10]))
    ask = Ask(Command(("true",)), ChipAsk("gpu", 1, 100))
    core.turn(START_NS, [ib.Submit((ask,) * RUNS, "k1", 1)])
    quiet: list[float] = []
    metering: list[float] = []
    for second in range(BEATS):
        runs = tuple(RunStatus(run, "running", second * NS_PER_S, 7) for run in core.state.runs)
        now_ns = START_NS + second * NS_PER_S
        began = time.perf_counter()
        events, _ = core.turn(now_ns, [ib.AgentBeat("n0", Beat(runs))])
        took_ms = (time.perf_counter() - began) * 1000
        if second:
            (quiet if now_ns % NS_PER_MINUTE or not events else metering).append(took_ms)
    assert len(metering) == BEATS // 60 - 1
    every = sorted(quiet + metering)
    return [
        Figure(f"turn of a beat of {RUNS:,} runs, p50", statistics.median(every), "ms"),
        Figure(
            f"turn of a beat of {RUNS:,} runs, p99",
            every[len(every) * 99 // 100],
            "ms",
            beside=f"one in 60 meters every run: {statistics.median(metering):.3g} ms",
        ),
    ]


def figures(nodes: Path | None = None, where: Path | None = None, rounds: int = 3) -> Iterator[Figure]:
    """`nodes`: a list of nodes instead of a fleet made up; `where`: a folder on the disk to measure."""
    sizes = listed(nodes) if nodes else [6 if number < 147 else 5 for number in range(1213)]
    with tempfile.TemporaryDirectory(dir=where) as made:
        folder = Path(made)
        yield placing(sizes, 10_000, folder, rounds)
        yield placing([8] * 12_500, 3_000, folder, rounds)
        yield replaying(folder, rounds)
    yield from beating()


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the core decides")
    parser.add_argument("--nodes", type=Path, help="a list of nodes (CSV with columns sn and gpu, may be .gz)")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure (default: the temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for figure in figures(given.nodes, given.dir, given.rounds):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
