"""How fast the log is: `python -m bench.store [--dir DIR]`, durable appends beside bare SQLite in the same run.

Bare: the same finished rows into a table without index, hash or head, same pragmas, one transaction a batch. Rounds
of the two alternate, so that what else the machine does falls on both. The median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import gc
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.figures import Figure
from dure.model.event import Entry, RunEnded, RunMoved, RunPlaced, RunsMetered, WorkloadEnded, WorkloadSubmitted
from dure.model.usage import RunMeter
from dure.model.workload import Ask, Command, Exit, Plan, Slice, Workload
from dure.store.chain import GENESIS, seal
from dure.store.sqlite import SqliteLog

ROUNDS = 7
REPLAYED = 60_000


def story(number: int) -> list[Entry]:
    """What one small job leaves in the log: six entries."""
    work, run, at = f"w{number}", f"w{number}.0.1", 1_790_000_000_000_000_000 + number * 1_000_000
    ask = Ask(Command(("python", "-c", "print(1)"), {"SEED": str(number)}))
    plan = Plan("node-1", (Slice("node-1:cpu0", 100),), "12 of 14 nodes fit; most packed first")
    meter = RunMeter(run, 12_345_678, 98_765, "modelled", "CPU time x 8 W a core")
    events = (
        WorkloadSubmitted(Workload(work, ask, "k1", at)),
        RunPlaced(run, work, 0, 1, plan),
        RunMoved(run, work, "running", 4242),
        RunsMetered("node-1", (meter,), 1_000),
        RunEnded(run, work, Exit("exited", 0)),
        WorkloadEnded(work, "done", "its run exited with 0"),
    )
    return [Entry(at, event) for event in events]


def entries(count: int) -> list[Entry]:
    return [entry for number in range(-(-count // 6)) for entry in story(number)][:count]


def bare(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE log (offset INTEGER PRIMARY KEY, at_ns, v, subject, body, hash)")
    return connection


def rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def appends(folder: Path, batch: int) -> tuple[float, float]:
    """Rows a second of (log, bare), both on their own file in `folder`."""
    batches = {1: 300, 10: 200, 100: 100, 1000: 20}[batch]
    every = entries(batch * batches)
    groups = [every[at : at + batch] for at in range(0, len(every), batch)]
    log, plain = SqliteLog(folder / f"log-{batch}"), bare(folder / f"bare-{batch}")
    ours, theirs = [], []
    for turn in range(ROUNDS):
        rows = seal(every, turn * len(every), GENESIS)
        finished = [rows[at : at + batch] for at in range(0, len(rows), batch)]

        def insert(finished: list[list[tuple[int, int, int, str | None, bytes, bytes]]] = finished) -> None:
            for group in finished:
                plain.execute("BEGIN IMMEDIATE")
                plain.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", group)
                plain.execute("COMMIT")

        ours.append(rate(len(every), lambda: [log.append(group) for group in groups]))
        theirs.append(rate(len(every), insert))
    log.close()
    plain.close()
    return statistics.median(ours), statistics.median(theirs)


def replay(log: SqliteLog) -> None:
    for start in range(0, log.head, 4096):
        log.read(start, 4096)


def figures(where: Path | None = None) -> Iterator[Figure]:
    """`where`: a folder on the disk to measure."""
    with tempfile.TemporaryDirectory(dir=where) as made:
        folder = Path(made)
        size = sum(len(row[4]) for row in seal(entries(600), 0, GENESIS)) // 600
        for batch in (1, 10, 100, 1000):
            ours, theirs = appends(folder, batch)
            beside = f"{size} bytes a row, synchronous=FULL; bare SQLite {theirs:,.0f}: ratio {ours / theirs:.2f}"
            yield Figure(f"durable appends, batches of {batch}", round(ours), "rows/s", beside=beside)
        log = SqliteLog(folder / "replay")
        log.append(entries(REPLAYED))
        gc.disable()  # as control does while it replays
        replayed = statistics.median(rate(log.head, lambda: replay(log)) for _ in range(5))
        gc.enable()
        verified = statistics.median(rate(log.head, log.verify) for _ in range(5))
        beside = f"verify alone {verified:,.0f} rows/s"
        yield Figure("replay: read, check against the chain, decode", round(replayed), "events/s", beside=beside)
        log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure (default: the temporary folder)")
    for figure in figures(parser.parse_args().dir):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
