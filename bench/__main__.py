"""`make bench`: every figure of one run, beside its target. `--json FILE` writes them too."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import uvloop

from bench import cloud, core, store
from bench.figures import Figure
from bench.gateway import ADDED_MS, CPU_LIMIT_US, idle


def gateway(seconds: float, rounds: int) -> list[Figure]:
    """The gateway alone beside a bare proxy, over an instant engine, nothing else running."""
    cells = {(cell.way, cell.connections, cell.stream): cell for cell in uvloop.run(idle(seconds, rounds))}
    figures = []
    for stream in (False, True):
        kind = "stream" if stream else "plain"
        mine, bare = cells["gateway", 16, stream], cells["bare proxy", 16, stream]
        if mine.cpu_us is not None and bare.cpu_us:
            beside = f"bare proxy {bare.cpu_us:.0f} µs: ratio {mine.cpu_us / bare.cpu_us:.2f}"
            name = f"gateway CPU, {kind}, c=16, idle"
            figures.append(Figure(name, round(mine.cpu_us, 1), "µs a request", CPU_LIMIT_US[stream], beside=beside))
        for connections in (1, 16):
            mine, bare = cells["gateway", connections, stream], cells["bare proxy", connections, stream]
            for what, own, other in (
                ("p50", mine.latency_ms_p50, bare.latency_ms_p50),
                ("p99", mine.latency_ms_p99, bare.latency_ms_p99),
            ):
                limit = ADDED_MS if (connections, what) == (1, "p50") else None
                name = f"gateway added {what} over the bare proxy, {kind}, c={connections}, idle"
                figures.append(Figure(name, round(own - other, 3), "ms", limit, beside=f"bare proxy {other:.3f} ms"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell under load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=Path, help="a model store to copy instead of fetching")
    asked = parser.parse_args()
    figures: list[Figure] = []
    for part in (
        lambda: gateway(asked.seconds, asked.rounds),
        lambda: cloud.figures(asked.seconds, asked.rounds, asked.models),
        core.figures,
        store.figures,
    ):
        for figure in part():
            figures.append(figure)
            print(figure.line(), flush=True)
    if asked.json:
        asked.json.write_bytes(msgspec.json.encode(figures))


if __name__ == "__main__":
    main()
